"""Hinton's knowledge distillation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import forward_kl
from kdkit.losses._ops import kl_rows

__all__ = ["KDLoss", "kd_loss"]


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 4.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""T² KL(teacher || student) between softened laws.

    .. math:: \ell = T^2 \sum_c p_c (\log p_c - \log q_c), \qquad p = \mathrm{softmax}(z_t / T), \;
        q = \mathrm{softmax}(z_s / T)

    Of a pair of temperatures the student's is squared. The factor :math:`T^2` keeps the size of the gradient
    comparable across temperatures. For large :math:`T` the loss tends to half the squared distance of the
    centred logits, divided by :math:`C`.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none". A mean over positions, never over classes.

    Returns:
        A 0-d tensor, or one value per position for "none"; +inf where the student bans a class with teacher mass.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, sec. 2. The paper minimises the cross-entropy of the softened laws; its
        gradient is that of this divergence, whose minimum is 0. The weights of this term and of the cross-entropy
        with labels belong to the objective; common choices are 1 and 1, or 0.9 and 0.1.
    """
    tensors = student_logits, teacher_logits
    return divergence("kd_loss", kl_rows, *tensors, temperature, mask, reduction, squared=True, kernel=forward_kl)


class KDLoss(LogitLoss):
    """Hinton's distillation: T² KL(teacher || student) between softened laws.

    Args:
        temperature: positive; 4 is the common choice for CIFAR, 1 for ImageNet.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Hinton et al. 2015, arXiv:1503.02531, sec. 2"

    def __init__(self, temperature: Temperature = 4.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("KDLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return kd_loss(*tensors, **self.options("temperature", **options))

    def head_term(self) -> HeadTerm | None:
        term = HeadTerm.divergence("kl", self.options("temperature")["temperature"])
        return None if term is None else replace(term, factor=term.temperature[0] ** 2)
