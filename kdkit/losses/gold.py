"""GOLD: entries that two vocabularies share are compared one by one, the others by their sorted probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._base import Probe, Reduction
from kdkit.losses._checks import Temperature, _may_look, check_between, check_temperature, refuse
from kdkit.losses._groups import GroupsLoss, check_sides, padded_gap, probabilities
from kdkit.losses._ops import kl_rows, log_mixture, reduce

__all__ = ["GOLDLoss", "gold_loss"]

Shared = Tensor | Sequence[Sequence[int]]


def gold_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    shared: Shared | None = None,
    beta: float = 0.5,
    shared_weight: float | None = None,
    temperature: Temperature = 1.0,
    student_rest: Tensor | None = None,
    teacher_rest: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""A divergence on the entries that both vocabularies have, and sorted L1 on those that only one has.

    .. math:: \ell = w\, D_\beta(p_S, q_S) + (1 - w) \sum_i |q_{U(i)} - p_{U'(i)}|

    with :math:`q = r_s\, \mathrm{softmax}(z_s / T)` and :math:`p = r_t\, \mathrm{softmax}(z_t / T)`, where :math:`S`
    are the shared entries, :math:`U` and :math:`U'` the others of the student and of the teacher, in falling order and
    followed by zeros, and :math:`w` is the share of the teacher's vocabulary that is in :math:`S`. The two parts
    of a law are not normalised, so that mass which one network gives to shared entries and the other does not is
    counted. :math:`D_\beta` is the generalised Jensen-Shannon divergence of two such measures,

    .. math:: D_\beta = \beta \sum_c p_c \log \frac{p_c}{m_c} + (1 - \beta) \sum_c q_c \log \frac{q_c}{m_c}, \qquad
        m = \beta p + (1 - \beta) q

    at its ends :math:`\beta = 0` and :math:`1` the generalised KL :math:`\sum_c p_c \log (p_c / q_c) + q_c - p_c` and
    the same with :math:`p` and :math:`q` exchanged. It is zero at equality and positive otherwise.

    Where a token of the one network stands for several of the other, the row is what the network says about the first
    one, times the probability :math:`r` that it gives to the ones that follow: the first token's entry is then the
    probability of all the bytes.

    Args:
        student_logits: ``[B, V]`` or ``[B, T, V]``.
        teacher_logits: ``[B, V']`` or ``[B, T, V']``, row by row about the same bytes; no gradient flows to it.
        shared: int64 ``[M, 2]``, entries (student, teacher) that stand for the same bytes, each at most once; ``None``
            where both vocabularies are one.
        beta: :math:`\beta` in [0, 1], weight of the teacher in the mixture.
        shared_weight: :math:`w` in [0, 1]; ``None`` for :math:`M / V'`.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        student_rest: :math:`\log r_s`, one number per position; ``None`` for single tokens.
        teacher_rest: :math:`\log r_t`, likewise; no gradient flows to it.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        The GOLD trainer of TRL (Patiño et al. 2025, "Unlocking On-Policy Distillation for Any Model Family"). Its code
        compares the shared part with a KL that leaves out :math:`\sum q - \sum p` at both ends of :math:`\beta`
        (negative values are then possible; in between, the masses cancel and the value is the same), takes the rows one
        position late in its "observed" merging, clamps probabilities at 1e-8, matches tokens by how their tokenizers
        spell them, and averages per sample first.
    """
    name = "gold_loss"
    check_sides(name, student_logits, teacher_logits, mask)
    check_between(name, "beta", beta, 0.0, 1.0)
    sizes = student_logits.shape[-1], teacher_logits.shape[-1]
    pairs = _check_shared(name, shared, sizes)
    weight = (
        len(pairs) / sizes[1] if shared_weight is None else check_between(name, "shared_weight", shared_weight, 0, 1)
    )
    log_q, log_p = probabilities(name, student_logits, teacher_logits, temperature, mask)
    log_q, log_p = _merged(name, log_q, student_rest, mask), _merged(name, log_p, teacher_rest, mask).detach()
    pairs = pairs.to(log_q.device)
    students, teachers = pairs[:, 0], pairs[:, 1]
    values = weight * _divergence(log_p[..., teachers], log_q[..., students], beta)
    if weight != 1 and (len(pairs) < max(sizes)):
        others = (log_q.exp().index_fill(-1, students, 0.0), log_p.exp().index_fill(-1, teachers, 0.0))
        values = values + (1 - weight) * padded_gap(*others)
    return reduce(values, mask, reduction, name)


def _divergence(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of two measures ``[..., M]``."""
    if beta in (0.0, 1.0):
        masses = log_q.exp().sum(dim=-1) - log_p.exp().sum(dim=-1)
        return kl_rows(log_p, log_q) + masses if beta == 0 else kl_rows(log_q, log_p) - masses
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kl_rows(log_p, log_m) + (1 - beta) * kl_rows(log_q, log_m)


def _merged(name: str, log_law: Tensor, rest: Tensor | None, mask: Tensor | None) -> Tensor:
    if rest is None:
        return log_law
    if not isinstance(rest, Tensor) or not rest.is_floating_point() or rest.shape != log_law.shape[:-1]:
        rule = f"float of shape {list(log_law.shape[:-1])}, one logarithm per position"
        refuse(name, "student_rest and teacher_rest", rule, rest)
    rest = rest if mask is None else torch.where(mask, rest, 0.0)
    return log_law + rest.to(log_law.dtype).unsqueeze(-1)


def _check_shared(name: str, shared: object, sizes: tuple[int, int] | None) -> Tensor:
    """Pairs of entries as a tensor; all of them, for ``None``."""
    rule = "int64 of shape [M, 2], entries (student, teacher)"
    if shared is None:
        assert sizes is not None
        if sizes[0] != sizes[1]:
            refuse(name, "shared", rule, None, f"vocabularies of {sizes[0]} and {sizes[1]} entries are two")
        return torch.arange(sizes[0]).unsqueeze(1).expand(-1, 2)
    if not isinstance(shared, Tensor):
        try:
            shared = torch.tensor(shared).reshape(len(shared), 2)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            refuse(name, "shared", rule, shared)
    assert isinstance(shared, Tensor)
    if shared.numel() == 0 and shared.is_floating_point():
        shared = shared.long()
    if shared.dtype != torch.int64 or shared.ndim != 2 or shared.shape[1] != 2:
        refuse(name, "shared", rule, shared)
    if sizes is not None and _may_look(shared):
        for side, size, ids in zip(("student", "teacher"), sizes, shared.T):
            if bool(((ids < 0) | (ids >= size)).any()) or len(ids.unique()) != len(ids):
                refuse(name, f"shared (the {side}'s entries)", f"in [0, {size}) and each there once", ids.tolist())
    return shared


class GOLDLoss(GroupsLoss):
    """Divergence on the entries that two vocabularies share, sorted L1 on the others, per group of the same bytes.

    Args:
        shared: int64 ``[M, 2]``, entries (student, teacher) that stand for the same bytes; ``None`` takes what the two
            tokenizers of a run give, and without a run one vocabulary.
        beta: in [0, 1], weight of the teacher in the mixture; 0 for the forward KL, 1 for the reverse KL.
        shared_weight: of the first part, in [0, 1]; ``None`` for the share of the teacher's vocabulary that is shared.
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Patiño et al. 2025 (GOLD), TRL"
    reads_rest = True
    shared: Tensor | None

    def __init__(
        self,
        shared: Shared | None = None,
        beta: float = 0.5,
        shared_weight: float | None = None,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        given = None if shared is None else _check_shared("GOLDLoss", shared, None)
        self.register_buffer("shared", given, persistent=False)
        self.beta = check_between("GOLDLoss", "beta", beta, 0.0, 1.0)
        if shared_weight is not None:
            check_between("GOLDLoss", "shared_weight", shared_weight, 0.0, 1.0)
        self.shared_weight = shared_weight
        self.temperature = check_temperature("GOLDLoss", temperature)

    def prepare(self, probe: Probe) -> None:
        """Take the entries that the two tokenizers share."""
        if self.shared is None and probe.shared is not None:
            self.shared = probe.shared

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        own = self.options("shared", "beta", "shared_weight", "temperature", **options)
        return gold_loss(*tensors, **own)
