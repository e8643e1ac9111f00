"""Multi-level optimal transport: sorted probabilities of a whole sequence, token by token and as a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._base import Reduction
from kdkit.losses._checks import check_at_least, check_positive, refuse
from kdkit.losses._groups import GroupsLoss, check_sides, group_rows
from kdkit.losses._ops import clean, cross_entropy_rows, reduce
from kdkit.losses._transport import TransportProblem, transported
from kdkit.outputs import StepOutputs

__all__ = ["MultiLevelOTLoss", "multilevel_ot_loss"]

_SMALLEST = 1e-8


def multilevel_ot_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    top: int = 50,
    log_weight: float = 0.1,
    sequence_weight: float = 0.1,
    temperature: float = 1.0,
    epsilon: float = 0.1,
    lengths: Sequence[int] | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Distance between the strongest entries of two vocabularies, whose order one sequence decides.

    .. math:: \ell_i = \sum_{c=1}^{k} |q_{ic} - p_{ic}| - \lambda_1 \sum_{c=1}^{k} p_{ic} \log q_{ic}
        + \lambda_2\, \langle P^\star, C \rangle, \qquad C_{ij} = \sum_{c=1}^{k} |q_{ic} - p_{jc}|

    with :math:`q_i = \mathrm{softmax}(z_{s,i} / (T \sigma_{s,i}))` and :math:`p_i` likewise, each row of logits divided
    by its own standard deviation. Entries of either side are put into the order of their sums over the sequence, and
    the first :math:`k` are kept: the same entry stands at the same place in every row, unlike in
    :func:`~kdkit.losses.uld_loss`. :math:`P^\star` is the plan of the entropic transport (weight :math:`\epsilon`)
    between the rows of the sequence, each of weight :math:`1 / n`; its cost counts at each of its positions.

    The logarithmic part is a cross-entropy and the plan is blurred, so that the value is not zero at equality.

    Args:
        student_logits: ``[B, T, V]``, one sequence per sample, or ``[N, V]``, one sequence.
        teacher_logits: ``[B, T, V']`` or ``[N, V']``, row by row about the same place in the text; no gradient flows to
            it.
        top: :math:`k`, entries that are kept, at least 1; fewer where a vocabulary is smaller.
        log_weight: :math:`\lambda_1`, at least 0.
        sequence_weight: :math:`\lambda_2`, at least 0.
        temperature: :math:`T`, positive.
        epsilon: :math:`\epsilon`, positive, in units of the cost.
        lengths: of the sequences that ``[N, V]`` holds one after the other; ``None`` for one.
        mask: bool ``[N]`` or ``[B, T]``, true where a position counts; others are no part of their sequence.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Cui et al. 2025 (MultiLevelOT), arXiv:2412.14528. In the released code the logarithmic part takes the student's
        law as the target and the teacher's as the prediction, after a second softmax, the order of the entries is that
        of the whole batch, and the plan has mass n and 10 iterations at temperature 2, its cost times 0.001; here the
        plan is converged and of mass 1, so that :math:`\lambda_2` has another scale. Its code cuts both answers to the
        shorter one; which rows are compared is said by the caller here.
    """
    name = "multilevel_ot_loss"
    check_sides(name, student_logits, teacher_logits, mask)
    _check_options(name, top, log_weight, sequence_weight, temperature, epsilon)
    laws = [_law(side, mask, temperature) for side in (student_logits, teacher_logits.detach())]
    laws[1] = laws[1].to(laws[0].dtype)
    parts = _sequences(name, student_logits.shape[:-1], lengths)
    flat = [law.reshape(-1, law.shape[-1]) for law in laws]
    keep = None if mask is None else mask.reshape(-1)
    values = [
        _sequence(student, teacher, kept, (top, log_weight, sequence_weight, epsilon))
        for student, teacher, kept in zip(
            flat[0].split(parts),
            flat[1].split(parts),
            [None] * len(parts) if keep is None else keep.split(parts),
            strict=True,
        )
    ]
    joined = torch.cat(values) if values else flat[0].sum(dim=-1)
    return reduce(joined.reshape(student_logits.shape[:-1]), mask, reduction, name)


def _check_options(name: str, top: Any, log_weight: Any, sequence_weight: Any, temperature: Any, epsilon: Any) -> None:
    check_at_least(name, "top", top, 1)
    check_at_least(name, "log_weight", log_weight, 0.0)
    check_at_least(name, "sequence_weight", sequence_weight, 0.0)
    check_positive(name, "temperature", temperature)
    check_positive(name, "epsilon", epsilon)


def _law(logits: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """Log-probabilities of rows that are divided by their standard deviation; entries of -inf take no part in that."""
    logits = clean(logits, mask)
    banned = logits == -torch.inf
    finite = logits.masked_fill(banned, 0.0)
    count = (~banned).sum(dim=-1, keepdim=True).clamp(min=1)
    centred = (finite - finite.sum(dim=-1, keepdim=True) / count).masked_fill(banned, 0.0)
    deviation = (centred.square().sum(dim=-1, keepdim=True) / count + _SMALLEST).sqrt()
    return (centred / deviation / temperature).masked_fill(banned, -torch.inf).log_softmax(dim=-1)


def _sequences(name: str, positions: torch.Size, lengths: Sequence[int] | None) -> list[int]:
    """Rows per sequence."""
    if lengths is None:
        return [positions[1]] * positions[0] if len(positions) == 2 else [positions[0]]
    if len(positions) != 1 or sum(lengths) != positions[0]:
        refuse(name, "lengths", f"integers that add up to the {positions[0]} rows of [N, V]", list(lengths))
    return list(lengths)


def _sequence(
    student: Tensor, teacher: Tensor, keep: Tensor | None, options: tuple[int, float, float, float]
) -> Tensor:
    """Values ``[n]`` of one sequence, from log-probabilities ``[n, V]`` and ``[n, V']``; any where masked."""
    top, log_weight, sequence_weight, epsilon = options
    top = min(top, student.shape[-1], teacher.shape[-1])
    log_q, log_p = (_strongest(side, keep, top) for side in (student, teacher))
    q, p = log_q.exp(), log_p.exp()
    values = (q - p).abs().sum(dim=-1)
    if log_weight:
        values = values + log_weight * cross_entropy_rows(p, log_q)
    rows = (q, p) if keep is None else (q[keep], p[keep])
    if sequence_weight and len(rows[0]):
        problem = TransportProblem(epsilon, "sinkhorn", "transport", 1e-9, 1000, 1.0, 1)
        values = values + sequence_weight * transported(*rows, 1.0, problem)
    return values


def _strongest(log_law: Tensor, keep: Tensor | None, top: int) -> Tensor:
    """The ``top`` entries with the largest sums over the rows that count, in that order."""
    law = log_law.detach().exp()
    sums = (law if keep is None else torch.where(keep.unsqueeze(-1), law, 0.0)).sum(dim=0)
    return log_law.index_select(-1, sums.sort(descending=True, stable=True).indices[:top])


class MultiLevelOTLoss(GroupsLoss):
    """Distance between the strongest entries of two vocabularies, token by token and as a transport over a sequence.

    A sequence is a row of the batch: what it holds of all groups of tokens with the same bytes.

    Args:
        top: entries that are kept, at least 1.
        log_weight: of the logarithmic part, at least 0.
        sequence_weight: of the transport over the sequence, at least 0.
        temperature: positive.
        epsilon: of the transport, positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Cui et al. 2025 (MultiLevelOT), arXiv:2412.14528"

    def __init__(
        self,
        top: int = 50,
        log_weight: float = 0.1,
        sequence_weight: float = 0.1,
        temperature: float = 1.0,
        epsilon: float = 0.1,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        _check_options("MultiLevelOTLoss", top, log_weight, sequence_weight, temperature, epsilon)
        self.top, self.log_weight, self.sequence_weight = top, log_weight, sequence_weight
        self.temperature, self.epsilon = temperature, epsilon

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        own = self.options("top", "log_weight", "sequence_weight", "temperature", "epsilon", **options)
        return multilevel_ot_loss(*tensors, **own)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step: those of a group at the position that predicts its first token."""
        if out.alignment is None:
            return super().compute(out)
        both = out.student.logits, self.teacher_of(out).logits.detach()
        rows = group_rows(type(self).__name__, *both, out.alignment, mask=out.mask)
        lengths = rows.where.sum(dim=1).tolist()
        values = self.loss(rows.student, rows.teacher, lengths=lengths, mask=None, reduction="none")
        return values.new_zeros(rows.where.shape).masked_scatter(rows.where, values)
