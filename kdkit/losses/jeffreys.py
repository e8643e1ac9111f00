"""Jeffreys divergence: forward and reverse KL added."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import weighted_kl
from kdkit.losses._rows import jeffreys_rows

__all__ = ["JeffreysLoss", "jeffreys_loss"]


def jeffreys_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Jeffreys divergence: punishes what either of the two KL divergences punishes.

    .. math:: \ell = \mathrm{KL}(p \| q) + \mathrm{KL}(q \| p) = \sum_c (p_c - q_c)(\log p_c - \log q_c), \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    The plain divergence at temperature :math:`T`: zero at equality, symmetric, unbounded, no factor :math:`T^2`. A
    class banned (logit -inf) on both sides contributes nothing; one banned on a single side, with mass on the other,
    makes the value +inf. Half of it is :func:`~kdkit.losses.symmetric_kl_loss` with equal weights.

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
        Jeffreys 1946, "An invariant form for the prior probability in estimation problems". It is the sum; texts that
        call the mean of both divergences by this name report half of it.
    """
    tensors = student_logits, teacher_logits
    return divergence(
        "jeffreys_loss", jeffreys_rows, *tensors, temperature, mask, reduction, kernel=weighted_kl(1.0, 1.0)
    )


class JeffreysLoss(LogitLoss):
    """Jeffreys divergence, KL(p || q) + KL(q || p), at a temperature; symmetric, no factor T².

    Args:
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Jeffreys 1946"

    def __init__(
        self,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("JeffreysLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return jeffreys_loss(*tensors, **self.options("temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature")
        return HeadTerm.divergence("jeffreys", own["temperature"])
