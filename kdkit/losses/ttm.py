"""TTM: the temperature softens the teacher alone; WTTM weighs samples by how smooth that makes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import check_logits, check_option, check_positive
from kdkit.losses._ops import kl_rows, log_probs, reduce

__all__ = ["TTMLoss", "ttm_loss"]


def ttm_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    gamma: float = 0.1,
    weighted: bool = False,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Transformed teacher matching, with or without weights.

    .. math:: \ell = U\, \mathrm{KL}(p^{(\gamma)} \| q), \qquad p^{(\gamma)}_c = \frac{p_c^\gamma}{U_\gamma(p)}, \qquad
        U_\gamma(p) = \sum_c p_c^\gamma

    :math:`p^{(\gamma)}` is the teacher's law after a power transform, the same as softening it by the temperature
    :math:`T = 1 / \gamma`; the student's law :math:`q` is not softened, and there is no factor :math:`T^2`. With
    ``weighted`` (WTTM) :math:`U = U_\gamma(p)`, which is large where the transformed law is smooth: between 1 and
    :math:`C^{1 - \gamma}` for :math:`\gamma \le 1`. Without, :math:`U = 1` (TTM). Not zero at student = teacher,
    unless :math:`\gamma = 1`: the student is to be as smooth as the transformed teacher.

    Classes that the teacher bans (logit -inf) contribute nothing; where the student bans a class with teacher mass
    the value is +inf.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        gamma: exponent, positive.
        weighted: multiply each sample by :math:`U_\gamma(p)`.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Zheng & Yang 2024, arXiv:2402.11148; value as in the authors' code.
    """
    check_logits("ttm_loss", student_logits, teacher_logits, mask)
    check_positive("ttm_loss", "gamma", gamma)
    powers = gamma * log_probs(teacher_logits.detach(), mask=mask)
    values = kl_rows(torch.log_softmax(powers, dim=-1), log_probs(student_logits, mask=mask))
    if weighted:
        values = values * powers.logsumexp(dim=-1).exp()
    return reduce(values, mask, reduction, "ttm_loss")


class TTMLoss(LogitLoss):
    """TTM and WTTM: KL from the softened teacher to the student as it is, weighted by the teacher's smoothness or not.

    Args:
        gamma: exponent of the teacher's law, positive; 1 / gamma is its temperature.
        weighted: WTTM.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Zheng & Yang 2024, arXiv:2402.11148 (TTM, WTTM)"

    def __init__(self, gamma: float = 0.1, weighted: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.gamma = check_option("TTMLoss", "gamma", gamma, check_positive)
        self.weighted = weighted

    def teacher_temperatures(self) -> list[Any]:
        return [1 / self.gamma]

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return ttm_loss(*tensors, **self.options("gamma", "weighted", **options))
