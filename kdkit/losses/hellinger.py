"""Squared Hellinger distance: the squared difference of the roots of the probabilities."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import hellinger
from kdkit.losses._rows import hellinger_rows

__all__ = ["HellingerLoss", "hellinger_loss"]


def hellinger_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared Hellinger distance: bounded, symmetric, and more sensitive than total variation to unlikely classes.

    .. math:: \ell = \frac{1}{2} \sum_c (\sqrt{p_c} - \sqrt{q_c})^2 = 1 - \sum_c \sqrt{p_c q_c}, \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    Between 0, at equality, and 1, for laws without a common class (texts that leave out the factor 1/2 go to 2); its
    root is a metric. No factor :math:`T^2`. Finite, with a finite gradient, for classes banned (logit -inf) on either
    side or on both.

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
        Hellinger 1909. It is a quarter of :func:`~kdkit.losses.alpha_divergence_loss` at :math:`\alpha = 1/2`.
    """
    tensors = student_logits, teacher_logits
    return divergence("hellinger_loss", hellinger_rows, *tensors, temperature, mask, reduction, kernel=hellinger)


class HellingerLoss(LogitLoss):
    """Squared Hellinger distance at a temperature; symmetric, at most 1, no factor T².

    Args:
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Hellinger 1909"

    def __init__(
        self,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("HellingerLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return hellinger_loss(*tensors, **self.options("temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature")
        return HeadTerm.divergence("hellinger", own["temperature"])
