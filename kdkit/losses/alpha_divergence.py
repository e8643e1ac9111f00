"""Alpha divergence: from reverse KL over the Hellinger distance to forward KL, and beyond."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_between, check_option, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._rows import alpha_rows

__all__ = ["AlphaDivergenceLoss", "alpha_divergence_loss"]


def alpha_divergence_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    alpha: float = 0.5,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Amari's alpha divergence: one number leads from mode seeking to mass covering.

    .. math:: \ell = \frac{1 - \sum_c p_c^{\alpha} q_c^{1 - \alpha}}{\alpha (1 - \alpha)}, \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    The limits belong to it: :math:`\alpha \to 1` is the forward KL(p || q), :math:`\alpha \to 0` the reverse KL(q ||
    p), and both are exact here. 1/2 is four times :func:`~kdkit.losses.hellinger_loss`; 2 and -1 are half of Pearson's
    and Neyman's :func:`~kdkit.losses.chi_square_loss`. Swapping the two laws turns :math:`\alpha` into :math:`1 -
    \alpha`. Zero at equality, no factor :math:`T^2`.

    For :math:`0 < \alpha < 1` the value is at most :math:`1 / (\alpha (1 - \alpha))` and finite, with a finite
    gradient, for classes banned (logit -inf) on either side. From 1 on it is +inf where the student bans a class with
    teacher mass, from 0 downwards where the teacher bans a class with student mass; outside of [0, 1] it grows like the
    exponential of the gap of the logits and overflows to +inf.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        alpha: any finite number; 0 is the reverse KL, 1 the forward KL.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Amari 1985, with the parametrisation of Minka 2005 and of Wang et al. 2021 (AlphaNet, arXiv:2102.07954), who
        clip the ratio to keep the gradient's variance down; nothing is clipped here.
    """
    check_between("alpha_divergence_loss", "alpha", alpha, -math.inf, math.inf, ends="()")
    rows = partial(alpha_rows, alpha=alpha)
    tensors = student_logits, teacher_logits
    return divergence("alpha_divergence_loss", rows, *tensors, temperature, mask, reduction)


class AlphaDivergenceLoss(LogitLoss):
    """Amari's alpha divergence at a temperature; reverse KL at 0, forward KL at 1, no factor T².

    Args:
        alpha: any finite number; 0 is the reverse KL, 1 the forward KL.
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Amari 1985; Wang et al. 2021 (AlphaNet), arXiv:2102.07954"

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.alpha = check_option("AlphaDivergenceLoss", "alpha", alpha, check_between, -math.inf, math.inf, ends="()")
        self.temperature = check_temperature("AlphaDivergenceLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return alpha_divergence_loss(*tensors, **self.options("alpha", "temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature", "alpha")
        return HeadTerm.divergence("alpha", own["temperature"], alpha=own["alpha"])
