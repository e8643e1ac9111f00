"""Squared distance of the logits themselves."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import check_choice, check_logits
from kdkit.losses._ops import clean, reduce

__all__ = ["LogitMSELoss", "logit_mse_loss"]


ClassReduction = Literal["sum", "mean"]


def _rows(student: Tensor, teacher: Tensor, centred: bool, class_reduction: str) -> Tensor:
    banned = (student == -math.inf) & (teacher == -math.inf)
    gap = (student - teacher).masked_fill(banned, 0.0)
    one_sided = gap.isinf()
    gap = gap.masked_fill(one_sided, 0.0)
    count = (~banned).sum(dim=-1, keepdim=True).clamp(min=1)
    if centred:
        gap = (gap - gap.sum(dim=-1, keepdim=True) / count).masked_fill(banned, 0.0)
    values = gap.square().sum(dim=-1)
    if class_reduction == "mean":
        values = values / count.squeeze(-1)
    return values.masked_fill(one_sided.any(dim=-1), math.inf)


def logit_mse_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    centred: bool = False,
    class_reduction: ClassReduction = "sum",
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squared Euclidean distance between the student's logits and the teacher's.

    .. math:: \ell = \sum_c (z_{s,c} - z_{t,c})^2

    There is no temperature: this is where :func:`~kdkit.losses.kd_loss` goes as its temperature grows, :math:`T^2\,
    \mathrm{KL} \to \frac{1}{2 C} \ell` with ``centred=True``. A softmax does not see a constant added to all logits,
    this loss does unless ``centred``. Zero at equality. A class banned (logit -inf) on both sides is left out of the
    sum and of the mean, one banned on a single side makes the value +inf.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        centred: take from either side its mean over the classes first.
        class_reduction: "sum" over the classes or "mean".
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Kim et al. 2021, arXiv:2105.08919, where the squared distance is a sum over the classes; their code takes the
        mean, ``class_reduction="mean"``. Ba & Caruana 2014 (arXiv:1312.6184) for the idea.
    """
    check_logits("logit_mse_loss", student_logits, teacher_logits, mask)
    check_choice("logit_mse_loss", "class_reduction", class_reduction, ("sum", "mean"))
    student, teacher = clean(student_logits, mask), clean(teacher_logits.detach(), mask)
    return reduce(_rows(student, teacher, centred, class_reduction), mask, reduction, "logit_mse_loss")


class LogitMSELoss(LogitLoss):
    """Squared distance of the logits, summed over the classes; no temperature.

    Args:
        centred: take from either side its mean over the classes first.
        class_reduction: "sum" over the classes or "mean".
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    needs_scores = True
    reference = "Kim et al. 2021, arXiv:2105.08919; Ba & Caruana 2014, arXiv:1312.6184"

    def __init__(
        self,
        centred: bool = False,
        class_reduction: ClassReduction = "sum",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.centred = centred
        self.class_reduction = check_choice("LogitMSELoss", "class_reduction", class_reduction, ("sum", "mean"))

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return logit_mse_loss(*tensors, **self.options("centred", "class_reduction", **options))
