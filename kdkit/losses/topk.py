"""A divergence on the teacher's k best entries: from its logits, or from a cache that holds nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import (
    Temperature,
    check_at_least,
    check_choice,
    check_logits,
    check_temperature,
    refuse,
    temperatures,
)
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._generators import check_generator
from kdkit.losses._ops import clean, log_probs
from kdkit.losses._sparse import RESTS
from kdkit.losses._topk import topk_divergence
from kdkit.outputs import StepOutputs

__all__ = ["TopKLoss", "topk_loss"]

Rest = Literal["bucket", "renormalise", "teacher", "none"]


def topk_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    k: int = 64,
    rest: Rest = "bucket",
    divergence: str = "kl",
    parameter: float | None = None,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""A divergence between two laws of which the teacher's k best entries are told apart.

    .. math:: \ell = D(\hat p, \hat q), \qquad \hat p = (p_{c_1}, \dots, p_{c_k},\; 1 - \textstyle\sum_j p_{c_j}),
        \quad \hat q = (q_{c_1}, \dots, q_{c_k},\; 1 - \textstyle\sum_j q_{c_j})

    for the default ``rest="bucket"``, with :math:`c_1, \dots, c_k` the teacher's most probable classes,
    :math:`p = \mathrm{softmax}(z_t / T)` and :math:`q = \mathrm{softmax}(z_s / T)`. A lower bound of the full
    divergence, which it reaches with ``k`` at the number of classes; 0 where the laws agree. This is
    :func:`~kdkit.losses.topk_divergence` with the entries taken from the teacher's logits; see there for the other
    treatments of the rest.

    Banned classes (logit -inf): as for the full divergence.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        k: entries, at least 1; all of them where there are fewer.
        rest: "bucket", "renormalise", "teacher" or "none".
        divergence: as ``f`` of :func:`~kdkit.losses.f_divergence_loss`; "none" takes "kl".
        parameter: as there.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Without a paper of its own; the bucket is TRL's ``add_tail`` and DistillKit's ``SYMMETRIC_UNIFORM``.
    """
    name = "topk_loss"
    check_logits(name, student_logits, teacher_logits, mask)
    check_at_least(name, "k", k, 1)
    both = temperatures(name, temperature, student_logits)
    log_p = log_probs(clean(teacher_logits.detach(), mask), both[1])
    best, index = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
    return topk_divergence(
        student_logits,
        best,
        index,
        rest=rest,
        divergence=divergence,
        parameter=parameter,
        temperature=both[0],
        mask=mask,
        reduction=reduction,
    )


class TopKLoss(LogitLoss):
    """A divergence on the teacher's k best entries, with one more class for the rest, from logits or from a cache.

    A teacher that comes out of a cache (``teacher=cached``) is read as it lies there: no logits are made of it.

    Args:
        k: entries; of a cache at most what it holds.
        rest: what becomes of the other entries: "bucket", "renormalise", "teacher" or "none".
        divergence: as ``f`` of :func:`~kdkit.losses.f_divergence_loss`.
        parameter: of that divergence.
        temperature: positive; with a cache that of the cache.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reads_sparse = True
    reference = "the bucket of TRL and DistillKit; see topk_divergence"

    def __init__(
        self,
        k: int = 64,
        rest: Rest = "bucket",
        divergence: str = "kl",
        parameter: float | None = None,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        name = type(self).__name__
        self.k = check_at_least(name, "k", k, 1)
        self.rest = check_choice(name, "rest", rest, RESTS)
        check_generator(name, divergence, parameter)
        if rest == "none" and divergence != "kl":
            refuse(name, "divergence", "'kl' with rest='none'", divergence)
        self.divergence, self.parameter = divergence, parameter
        self.temperature = check_temperature(name, temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        own = self.options("k", "rest", "divergence", "parameter", "temperature", **options)
        return topk_loss(*tensors, **own)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step, from what the teacher's output holds."""
        sparse = self.teacher_of(out).sparse
        if sparse is None:
            return super().compute(out)
        own = self.options("rest", "divergence", "parameter", "temperature", mask=out.mask, reduction="none")
        pair = own["temperature"] if isinstance(own["temperature"], tuple) else (own["temperature"],) * 2
        own["temperature"], sparse = pair[0], sparse.at(pair[1])
        return topk_divergence(out.student.logits, sparse.log_probs[..., : self.k], sparse.ids[..., : self.k], **own)

    def head_term(self) -> HeadTerm | None:
        own = self.options("k", "rest", "divergence", "parameter", "temperature")
        term = HeadTerm.divergence(own["divergence"], own["temperature"])
        if term is None or not isinstance(own["divergence"], str):
            return None
        options = {name: own[name] for name in ("k", "rest", "divergence", "parameter")}
        return replace(term, kind="entries", options=options)
