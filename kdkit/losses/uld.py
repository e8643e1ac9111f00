"""Universal logit distillation: sorted probabilities, whatever the vocabularies are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._groups import GroupsLoss, check_sides, padded_gap, probabilities
from kdkit.losses._ops import reduce

__all__ = ["ULDLoss", "uld_loss"]


def uld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Distance between the probabilities of two vocabularies, each in falling order.

    .. math:: \ell = \sum_{i=1}^{\max(V, V')} |q_{(i)} - p_{(i)}|, \qquad
        q = \mathrm{softmax}(z_s / T), \quad p = \mathrm{softmax}(z_t / T)

    with :math:`q_{(1)} \ge q_{(2)} \ge \dots`, and zeros behind the shorter vocabulary: the smallest L1 distance that
    any renaming of the entries could give. How certain a network is gets compared; what it is certain of does not.
    Zero where the probabilities are the same up to their order, at most 2. The plain value at temperature :math:`T`,
    without :math:`T^2`.

    Args:
        student_logits: ``[B, V]`` or ``[B, T, V]``.
        teacher_logits: ``[B, V']`` or ``[B, T, V']``, row by row about the same place in the text; no gradient flows
            to it.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Boizard et al. 2024, arXiv:2402.12030. The paper holds the k-th token of one answer against the k-th of the
        other and stops at the end of the shorter one, as its code and that of DSKD do (which adds the values up). Which
        rows are compared is said by the caller here; :class:`ULDLoss` takes those that begin the same bytes, as
        TRL's GOLD trainer does with its aligned groups, since tokens of the same number soon stand at different
        places in the text.
    """
    check_sides("uld_loss", student_logits, teacher_logits, mask)
    log_q, log_p = probabilities("uld_loss", student_logits, teacher_logits, temperature, mask)
    return reduce(padded_gap(log_q.exp(), log_p.exp()), mask, reduction, "uld_loss")


class ULDLoss(GroupsLoss):
    """L1 between sorted probabilities of two vocabularies, at the places where both begin the same bytes.

    Args:
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Boizard et al. 2024 (ULD), arXiv:2402.12030"

    def __init__(self, temperature: Temperature = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.temperature = check_temperature("ULDLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return uld_loss(*tensors, **self.options("temperature", **options))
