"""Reverse KL: the divergence of the teacher's law from the student's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import reverse_kl
from kdkit.losses._ops import kl_rows

__all__ = ["ReverseKLLoss", "reverse_kl_loss"]


def _rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    return kl_rows(log_q, log_p)


def reverse_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""KL(student || teacher): the student must avoid whatever the teacher finds unlikely.

    .. math:: \ell = \sum_c q_c (\log q_c - \log p_c), \qquad p = \mathrm{softmax}(z_t / T), \;
        q = \mathrm{softmax}(z_s / T)

    The plain divergence at temperature :math:`T`: zero at equality, no factor :math:`T^2`. The gradient flows through
    both places of :math:`q`. Classes that the student bans (logit -inf) contribute nothing. Where the teacher bans a
    class with student mass the divergence and its slope are infinite: the value returned is +inf and the gradient is
    not finite. Ban the class on both sides, or use :func:`~kdkit.losses.js_loss`, which is bounded.

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
        As a distillation loss: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, here over the whole vocabulary at
        each position and without sampling. DistiLLM's code leaves out classes that the student alone bans or the
        teacher alone bans (logit -inf); here they count, and mass on a class that the teacher bans costs +inf.
    """
    tensors = student_logits, teacher_logits
    return divergence("reverse_kl_loss", _rows, *tensors, temperature, mask, reduction, kernel=reverse_kl)


class ReverseKLLoss(LogitLoss):
    """KL(student || teacher) at a temperature; mode seeking, no factor T².

    Args:
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Gu et al. 2023 (MiniLLM), arXiv:2306.08543"

    def __init__(self, temperature: Temperature = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("ReverseKLLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return reverse_kl_loss(*tensors, **self.options("temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature")
        return HeadTerm.divergence("reverse_kl", own["temperature"])
