"""Chi-square divergences: the squared difference of the laws relative to one of them."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_choice, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._rows import chi_square_rows

__all__ = ["ChiSquareLoss", "chi_square_loss"]


Kind = Literal["pearson", "neyman"]


def _neyman_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    return chi_square_rows(log_q, log_p)


def chi_square_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: Kind = "pearson",
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Chi-square divergence of Pearson or of Neyman.

    .. math:: \ell_\mathrm{Pearson} = \sum_c \frac{(p_c - q_c)^2}{q_c}, \qquad
        \ell_\mathrm{Neyman} = \sum_c \frac{(p_c - q_c)^2}{p_c}, \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    Pearson's divides by the student's probability: the most mass covering of the divergences here. Neyman's divides by
    the teacher's: the most mode seeking. Zero at equality, no factor :math:`T^2`.

    What is infinite: Pearson's, where the student bans (logit -inf) a class with teacher mass; Neyman's, where the
    teacher bans a class with student mass; a class that both ban counts 0. Both grow like the exponential of the gap of
    the logits, so that in float32 they overflow to +inf from a gap of about 88 on, where the gradient is not finite
    either. :func:`~kdkit.losses.renyi_loss` of order 2, :math:`\log (1 + \ell_\mathrm{Pearson})`, and the bounded
    divergences do not.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        kind: "pearson" or "neyman".
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Pearson 1900; Neyman 1949. They are twice :func:`~kdkit.losses.alpha_divergence_loss` at 2 and at -1.
    """
    check_choice("chi_square_loss", "kind", kind, ("pearson", "neyman"))
    rows = chi_square_rows if kind == "pearson" else _neyman_rows
    tensors = student_logits, teacher_logits
    return divergence("chi_square_loss", rows, *tensors, temperature, mask, reduction)


class ChiSquareLoss(LogitLoss):
    """Pearson's or Neyman's chi-square divergence at a temperature; unbounded, no factor T².

    Args:
        kind: "pearson" or "neyman".
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Pearson 1900; Neyman 1949"

    def __init__(
        self,
        kind: Kind = "pearson",
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.kind = check_choice("ChiSquareLoss", "kind", kind, ("pearson", "neyman"))
        self.temperature = check_temperature("ChiSquareLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return chi_square_loss(*tensors, **self.options("kind", "temperature", **options))

    def head_term(self) -> HeadTerm | None:
        return HeadTerm.divergence(self.kind, self.options("temperature")["temperature"])
