"""Binary cross-entropy per class, with the teacher's probabilities as its targets."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_choice, check_logits, check_temperature, temperatures
from kdkit.losses._ops import clean, reduce, soften

__all__ = ["BCEKDLoss", "bce_kd_loss"]


Target = Literal["softmax", "sigmoid"]
ClassReduction = Literal["sum", "mean"]


def _log_targets(teacher: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """``log y`` and ``log(1 - y)`` of each class."""
    if target == "sigmoid":
        return F.logsigmoid(teacher), F.logsigmoid(-teacher)
    log_y = torch.log_softmax(teacher, dim=-1)
    return log_y, torch.log(-torch.expm1(log_y))


def _rows(student: Tensor, teacher: Tensor, target: str, subtract_entropy: bool) -> Tensor:
    values = torch.zeros_like(student)
    outcomes = F.logsigmoid(student), F.logsigmoid(-student)
    for log_y, log_q in zip(_log_targets(teacher, target), outcomes, strict=True):
        y = log_y.exp()
        ratio = log_y - log_q if subtract_entropy else -log_q
        values = values + y * ratio.masked_fill(y == 0, 0.0)
    return values


def bce_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    target: Target = "softmax",
    subtract_entropy: bool = True,
    class_reduction: ClassReduction = "sum",
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross-entropy of every class by itself: the student's sigmoids learn the teacher's probabilities.

    .. math:: \ell = \sum_c \left[ - y_c \log \sigma_c - (1 - y_c) \log (1 - \sigma_c) \right] - H, \qquad
        \sigma = \mathrm{sigmoid}(z_s / T), \quad
        y = \mathrm{softmax}(z_t / T) \text{ or } \mathrm{sigmoid}(z_t / T)

    :math:`H = - \sum_c [y_c \log y_c + (1 - y_c) \log (1 - y_c)]` is the smallest value that the cross-entropy can
    take: less it, the value is a divergence, 0 exactly where :math:`\sigma = y`. With ``target="sigmoid"`` that is at
    student = teacher; with ``target="softmax"`` it is not: the student learns log-odds instead of logits up to a
    constant. No factor :math:`T^2`.

    Banned classes (logit -inf): 0 where both ban; :math:`- \log (1 - \sigma_c)` where the teacher does; +inf where the
    student bans what the teacher finds possible.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        target: "softmax" or "sigmoid" of the teacher's logits.
        subtract_entropy: report the divergence; otherwise the cross-entropy, larger by the targets' entropy.
        class_reduction: "sum" over the classes or "mean".
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        The distiller BKD of the released code of Hao et al. 2023 (OFA-KD, arXiv:2310.19444): ``target="softmax"``,
        ``subtract_entropy=False``, ``class_reduction="mean"``, T = 1.
    """
    check_logits("bce_kd_loss", student_logits, teacher_logits, mask)
    check_choice("bce_kd_loss", "target", target, ("softmax", "sigmoid"))
    check_choice("bce_kd_loss", "class_reduction", class_reduction, ("sum", "mean"))
    student_temperature, teacher_temperature = temperatures("bce_kd_loss", temperature, student_logits)
    student = soften(clean(student_logits, mask), student_temperature)
    teacher = soften(clean(teacher_logits.detach(), mask), teacher_temperature)
    values = _rows(student, teacher, target, subtract_entropy)
    values = values.sum(dim=-1) if class_reduction == "sum" else values.mean(dim=-1)
    return reduce(values, mask, reduction, "bce_kd_loss")


class BCEKDLoss(LogitLoss):
    """Binary cross-entropy per class with the teacher's probabilities as targets; no factor T².

    Args:
        target: "softmax" or "sigmoid" of the teacher's logits.
        subtract_entropy: report the divergence; otherwise the cross-entropy, larger by the targets' entropy.
        class_reduction: "sum" over the classes or "mean".
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Hao et al. 2023 (OFA-KD), arXiv:2310.19444, released code (BKD)"

    def __init__(
        self,
        target: Target = "softmax",
        subtract_entropy: bool = True,
        class_reduction: ClassReduction = "sum",
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.target = check_choice("BCEKDLoss", "target", target, ("softmax", "sigmoid"))
        self.needs_scores = target == "sigmoid"
        self.subtract_entropy = subtract_entropy
        self.class_reduction = check_choice("BCEKDLoss", "class_reduction", class_reduction, ("sum", "mean"))
        self.temperature = check_temperature("BCEKDLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return bce_kd_loss(
            *tensors, **self.options("target", "subtract_entropy", "class_reduction", "temperature", **options)
        )
