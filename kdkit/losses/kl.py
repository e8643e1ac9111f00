"""Forward KL: the divergence of the student's law from the teacher's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import forward_kl
from kdkit.losses._ops import kl_rows

__all__ = ["KLLoss", "kl_loss"]


def kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""KL(teacher || student): the student must cover whatever the teacher finds possible.

    .. math:: \ell = \sum_c p_c (\log p_c - \log q_c), \qquad p = \mathrm{softmax}(z_t / T), \;
        q = \mathrm{softmax}(z_s / T)

    The plain divergence at temperature :math:`T`: zero at equality, no factor :math:`T^2`
    (:func:`~kdkit.losses.kd_loss` has it). Classes that the teacher bans (logit -inf) contribute nothing. Where the
    student bans a class with teacher mass the divergence is +inf, and that is the value returned; the gradient,
    :math:`(q - p) / T`, stays finite.

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
        Kullback & Leibler 1951, "On information and sufficiency". Toolkits that call the cross-entropy
        :math:`-\sum p \log q` a forward KL report it larger by the teacher's entropy, with the same gradient.
    """
    tensors = student_logits, teacher_logits
    return divergence("kl_loss", kl_rows, *tensors, temperature, mask, reduction, kernel=forward_kl)


class KLLoss(LogitLoss):
    """KL(teacher || student) at a temperature; mass covering, no factor T².

    Args:
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Kullback & Leibler 1951"

    def __init__(self, temperature: Temperature = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("KLLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return kl_loss(*tensors, **self.options("temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature")
        return HeadTerm.divergence("kl", own["temperature"])
