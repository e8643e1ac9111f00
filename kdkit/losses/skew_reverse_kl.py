"""Skew reverse KL: reverse KL with a little of the student mixed into the teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_between, check_option, check_temperature
from kdkit.losses._divergence import Rows, divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import reverse_kl, skew_reverse_kl
from kdkit.losses._rows import skew_kl_rows

__all__ = ["SkewReverseKLLoss", "skew_reverse_kl_loss"]


def _rows(alpha: float) -> Rows:
    return lambda log_p, log_q: skew_kl_rows(log_q, log_p, alpha)


def skew_reverse_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 0.1,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Reverse KL to the teacher mixed with a little of the student: bounded, and smooth where the teacher is sure.

    .. math:: \ell = \mathrm{KL}(q \,\|\, (1 - \alpha)\, p + \alpha\, q), \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    The plain divergence at temperature :math:`T`: zero at equality, at most :math:`-\log \alpha`, no factor
    :math:`T^2`. The gradient flows through both places of :math:`q`. ``alpha=0`` is exactly
    :func:`~kdkit.losses.reverse_kl_loss`. For ``alpha`` above 0 it is finite, with a finite gradient, for classes
    banned (logit -inf) on either side or on both.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        alpha: share of the student in the mixture, in [0, 1).
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Ko et al. 2024 (DistiLLM), arXiv:2402.03898; 0.1 is the authors' choice. Their code takes the logarithm of the
        summed probabilities, which is -inf where both underflow: the gradient is NaN there, and finite here. DistiLLM-2
        (arXiv:2503.07067) detaches the student inside the mixture; this function does not.
    """
    check_between("skew_reverse_kl_loss", "alpha", alpha, 0.0, 1.0, ends="[)")
    rows, kernel = _rows(alpha), skew_reverse_kl(alpha) if alpha else reverse_kl
    tensors = student_logits, teacher_logits
    return divergence("skew_reverse_kl_loss", rows, *tensors, temperature, mask, reduction, kernel=kernel)


class SkewReverseKLLoss(LogitLoss):
    """Reverse KL to the teacher mixed with a little of the student (DistiLLM); bounded, no factor T².

    Args:
        alpha: share of the student in the mixture, in [0, 1).
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Ko et al. 2024 (DistiLLM), arXiv:2402.03898"

    def __init__(
        self,
        alpha: float = 0.1,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.alpha = check_option("SkewReverseKLLoss", "alpha", alpha, check_between, 0.0, 1.0, ends="[)")
        self.temperature = check_temperature("SkewReverseKLLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return skew_reverse_kl_loss(*tensors, **self.options("alpha", "temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature", "alpha")
        return HeadTerm.divergence("skew_reverse_kl", own["temperature"], alpha=own["alpha"])
