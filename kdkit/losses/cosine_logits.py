"""Cosine distance between the vectors of logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import check_logits, check_positive
from kdkit.losses._ops import clean, reduce

__all__ = ["CosineLogitsLoss", "cosine_logits_loss"]


def _rows(student: Tensor, teacher: Tensor, centred: bool, eps: float) -> Tensor:
    left_out = (student == -math.inf) | (teacher == -math.inf)
    count = (~left_out).sum(dim=-1, keepdim=True).clamp(min=1)
    directions, short = [], torch.zeros_like(count, dtype=torch.bool)
    for side in (student, teacher):
        vector = side.masked_fill(left_out, 0.0)
        if centred:
            vector = (vector - vector.sum(dim=-1, keepdim=True) / count).masked_fill(left_out, 0.0)
        norm = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
        short = short | (norm < eps)
        directions.append(vector / norm.clamp(min=eps))
    values = (directions[0] - directions[1]).square().sum(dim=-1) / 2
    return torch.where(short.squeeze(-1), 1.0, values)


def cosine_logits_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    centred: bool = False,
    eps: float = 1e-8,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""One minus the cosine of the angle between the student's logits and the teacher's.

    .. math:: \ell = 1 - \frac{\langle z_s, z_t \rangle}{\|z_s\| \|z_t\|}

    Between 0 and 2, the same for logits of any scale, so there is no temperature: only the pattern over the classes
    counts. With ``centred`` it is one minus Pearson's correlation, which a constant added to all logits does not change
    either. Zero at equality, except for a vector of norm below ``eps``: it has no direction, and the value is 1 without
    a gradient. A class that either side bans (logit -inf) is left out.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        centred: take from either side its mean over the classes first, which makes the cosine a correlation.
        eps: norm below which a vector counts as zero.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        With ``centred``, the form of DIST (Huang et al. 2022, arXiv:2205.10536) within a sample, on logits instead of
        probabilities and without its second term between samples.
    """
    check_logits("cosine_logits_loss", student_logits, teacher_logits, mask)
    check_positive("cosine_logits_loss", "eps", eps)
    student, teacher = clean(student_logits, mask), clean(teacher_logits.detach(), mask)
    return reduce(_rows(student, teacher, centred, eps), mask, reduction, "cosine_logits_loss")


class CosineLogitsLoss(LogitLoss):
    """Cosine distance between the vectors of logits; blind to their scale.

    Args:
        centred: take from either side its mean over the classes first, which makes the cosine a correlation.
        eps: norm below which a vector counts as zero.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    needs_scores = True
    reference = "after Huang et al. 2022 (DIST), arXiv:2205.10536"

    def __init__(
        self,
        centred: bool = False,
        eps: float = 1e-8,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.centred = centred
        self.eps = check_positive("CosineLogitsLoss", "eps", eps)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return cosine_logits_loss(*tensors, **self.options("centred", "eps", **options))
