"""Total variation: half the L1 distance between the student's law and the teacher's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import total_variation
from kdkit.losses._rows import total_variation_rows

__all__ = ["TotalVariationLoss", "total_variation_loss"]


def total_variation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Total variation distance: bounded, symmetric, blind to how unlikely an unlikely class is.

    .. math:: \ell = \frac{1}{2} \sum_c |p_c - q_c|, \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    A metric between 0, at equality, and 1, for laws without a common class; no factor :math:`T^2`. 1 minus it is the
    probability with which speculative decoding accepts a token of the student. Classes banned (logit -inf) on either
    side are like any other of probability 0. The gradient is bounded; where :math:`p_c = q_c` the slope 0 is taken for
    that class.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Wen et al. 2023 (f-DISTILL), arXiv:2307.15190, here at every position of given text; Zhou et al. 2023
        (DistillSpec), arXiv:2310.08461. DistiLLM's code leaves out classes that one side alone bans (logit -inf); here
        they count.
    """
    name, rows, tensors = "total_variation_loss", total_variation_rows, (student_logits, teacher_logits)
    return divergence(name, rows, *tensors, temperature, mask, reduction, kernel=total_variation)


class TotalVariationLoss(LogitLoss):
    """Total variation distance at a temperature; a metric, at most 1, no factor T².

    Args:
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Wen et al. 2023 (f-DISTILL), arXiv:2307.15190"

    def __init__(
        self,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("TotalVariationLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return total_variation_loss(*tensors, **self.options("temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature")
        return HeadTerm.divergence("total_variation", own["temperature"])
