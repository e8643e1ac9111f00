"""MFT: the teacher's law, corrected towards the label until it leads by a threshold."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.losses._base import LabelledLogitLoss, Reduction
from kdkit.losses._checks import (
    REDUCTIONS,
    Temperature,
    check_between,
    check_choice,
    check_labels,
    check_logits,
    check_option,
    check_temperature,
    temperatures,
)
from kdkit.losses._labelled import Cooling, Labelled
from kdkit.losses._one_pass import normalise_into, scale_into
from kdkit.losses._ops import kl_rows, log_probs, pick, targets
from kdkit.losses._rowwise import Temperatures, evaluate
from kdkit.outputs import IGNORE_INDEX

__all__ = ["MFTLoss", "mft_loss"]

_CORRECT = ("all", "wrong")
_LOG_2 = math.log(2)


def _share(p_y: Tensor, p_a: Tensor, right: Tensor, threshold: float, correct: str) -> Tensor:
    """How much of the label is mixed in, from the probabilities of the label and of the likeliest class."""
    near = p_y >= 1 - threshold
    grown = torch.where(near, 1.0, threshold / (1 - p_y).masked_fill(near, 1.0)) if correct == "all" else 0.0 * p_y
    grown = grown if threshold > 0 else torch.zeros_like(p_y)
    lead = p_a - p_y
    return torch.where(right, grown, (lead + threshold) / (1 + lead))


def _rows(
    student: Tensor, teacher: Tensor, index: Tensor, both: Temperatures, *, threshold: float, correct: str
) -> Tensor:
    """The formula, per position."""
    log_p = log_probs(teacher.detach(), both[1])
    log_p_y, (log_p_a, argmax) = pick(log_p, index), log_p.max(dim=-1)
    share = _share(log_p_y.exp(), log_p_a.exp(), argmax == index, threshold, correct)
    log_rest = torch.log1p(-share)
    label = torch.logaddexp(log_p_y + log_rest, share.log())
    corrected = (log_p + log_rest.unsqueeze(-1)).scatter(-1, index.unsqueeze(-1), label.unsqueeze(-1))
    return both[0] ** 2 * kl_rows(corrected, log_probs(student, both[0]))


def _closed_form(
    student: Tensor,
    teacher: Tensor,
    column: Tensor,
    cooling: Cooling,
    learning: bool,
    rooms: Tensor,
    *,
    threshold: float,
    correct: str,
) -> tuple[Tensor, Tensor]:
    """Values and gradients in few passes; the corrected law never exists as such."""
    scale, cool = cooling
    log_q, log_p, q, p = rooms[:4].unbind()
    scale_into(teacher, cool, log_p)
    scale_into(student, scale, log_q)
    top = log_p.argmax(dim=-1, keepdim=True)
    above_p, above_q = (normalise_into(*side).to(p.dtype) for side in ((log_p, p), (log_q, q)))
    p_y, log_q_y = p.gather(-1, column), log_q.gather(-1, column).sub_(above_q).mul_(_LOG_2)
    share = _share(p_y, p.gather(-1, top), top == column, threshold, correct)
    rest, label = 1 - share, p_y + share * (1 - p_y)
    gap = log_p.sub_(log_q).add_(above_q - above_p).scatter_(-1, column, 0.0).mul_(p).sum(dim=-1, keepdim=True)
    others = rest * _LOG_2 * gap + torch.special.xlogy(rest, rest) * (1 - p_y)
    values = (others + torch.special.xlogy(label, label) - label * log_q_y) * scale**2
    if learning:
        own = q.gather(-1, column).sub_(label)
        q.sub_(p.mul_(rest)).scatter_(-1, column, own).mul_(scale)
    return values.squeeze(-1), q


def mft_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    threshold: float = 0.2,
    correct: Literal["all", "wrong"] = "all",
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    r"""KL divergence from the teacher's law after as much of the label as it takes was mixed in.

    .. math:: \ell = T^2 \, \mathrm{KL}(\tilde p \| q), \qquad \tilde p = (1 - \alpha) p + \alpha \, e_y, \qquad
        \alpha = \begin{cases} \dfrac{p_a - p_y + \tau}{1 + p_a - p_y} & a \ne y \\[1ex]
        \min\left(1, \dfrac{\tau}{1 - p_y}\right) & a = y \end{cases}

    :math:`a` is the teacher's likeliest class, :math:`y` the label. Where the teacher is wrong the label comes out
    ahead of :math:`a` by exactly :math:`\tau`; where it is right the label's probability grows by :math:`\tau`, at
    most to 1. At student = teacher the value is :math:`T^2 \, \mathrm{KL}(\tilde p \| p)`, zero only for
    :math:`\tau = 0` and a teacher that is right.

    Banned classes (logit -inf): finite, unless the student bans the label or another class to which the teacher gives
    mass; then the value is +inf.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        labels: int64 ``[B]`` or ``[B, T]``; of soft labels ``[B, C]`` the likeliest class is taken.
        threshold: :math:`\tau`, in [0, 1].
        correct: "all" positions, or only where the teacher is "wrong", so that :math:`\alpha = 0` for :math:`a = y`.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these; of a pair the student's is squared. Corrected is the softened law.
        mask: bool, true where a position counts.
        ignore_index: label of a position that does not count.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes, labels or options outside the rules above.

    Source:
        Belcak et al. 2025, arXiv:2506.15702; value as in NVIDIA's Model Optimizer, which adds 1e-7 to the denominators.
        Meant for a language model that is finetuned with its own earlier self as the teacher.
    """
    name = "mft_loss"
    check_logits(name, student_logits, teacher_logits, mask)
    check_labels(name, labels, student_logits.shape[:-1], student_logits.shape[-1], ignore_index)
    check_between(name, "threshold", threshold, 0.0, 1.0)
    check_choice(name, "correct", correct, _CORRECT)
    both = temperatures(name, temperature, student_logits)
    check_choice(name, "reduction", reduction, REDUCTIONS)
    index, valid = targets(labels, mask, ignore_index)
    formula = partial(_rows, threshold=threshold, correct=correct)
    closed_form = partial(_closed_form, threshold=threshold, correct=correct)
    task = Labelled(name, formula, closed_form, both, valid, index, reduction)
    return evaluate(task, student_logits, teacher_logits)


class MFTLoss(LabelledLogitLoss):
    """MFT, minifinetuning: KL from a teacher whose law was corrected towards the label, T² included.

    Args:
        threshold: by how much the label leads, in [0, 1].
        correct: "all" positions, or only where the teacher is "wrong".
        temperature: positive.
        ignore_index: label of a position that does not count.
        reduction: what ``forward`` returns: "mean" over the labelled positions, "sum", or "none".
    """

    reference = "Belcak et al. 2025, arXiv:2506.15702 (MFT)"

    def __init__(
        self,
        threshold: float = 0.2,
        correct: Literal["all", "wrong"] = "all",
        temperature: Temperature = 1.0,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.threshold = check_option("MFTLoss", "threshold", threshold, check_between, 0.0, 1.0)
        self.correct = check_choice("MFTLoss", "correct", correct, _CORRECT)
        self.temperature = check_temperature("MFTLoss", temperature)
        self.ignore_index = ignore_index

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        own = self.options("threshold", "correct", "temperature", "ignore_index", **options)
        return mft_loss(*tensors, **own)
