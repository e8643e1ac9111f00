"""Cross-entropy with labels: what a network learns without a teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import Reduction, _ReducedLoss
from kdkit.losses._checks import check_between, check_labels, check_logits
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._ops import cross_entropy_rows, log_probs, pick, reduce, targets
from kdkit.outputs import IGNORE_INDEX, StepOutputs

__all__ = ["CELoss", "ce_loss"]


def ce_loss(
    student_logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the student's law with hard or soft labels.

    .. math:: \ell = - \sum_c y_c \log q_c, \qquad y \leftarrow (1 - \epsilon)\, y + \epsilon / C, \qquad
        q = \mathrm{softmax}(z_s)

    A label on a banned class (logit -inf) costs +inf, and so does any banned class under label smoothing.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        labels: int64 ``[B]`` or ``[B, T]``, or float class weights (mixup, stored targets) of the logits' shape.
        label_smoothing: share :math:`\epsilon` of the mass spread over all classes, in [0, 1).
        mask: bool, true where a position counts.
        ignore_index: label of a position that does not count.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes, labels or options outside the rules above.

    Source:
        Label smoothing as in Szegedy et al. 2016, arXiv:1512.00567, sec. 7 (mass on all classes, the label included,
        as ``torch.nn.functional.cross_entropy`` has it).
    """
    check_logits("ce_loss", student_logits, mask=mask)
    num_classes = student_logits.shape[-1]
    check_labels("ce_loss", labels, student_logits.shape[:-1], num_classes, ignore_index)
    check_between("ce_loss", "label_smoothing", label_smoothing, 0.0, 1.0, ends="[)")
    index, valid = targets(labels, mask, ignore_index)
    log_q = log_probs(student_logits, mask=valid)
    if labels.is_floating_point():
        rows = cross_entropy_rows(labels.detach().to(log_q.dtype), log_q)
    else:
        rows = -pick(log_q, index)
    if label_smoothing > 0:
        rows = (1 - label_smoothing) * rows - label_smoothing * log_q.mean(dim=-1)
    return reduce(rows, valid, reduction, "ce_loss")


class CELoss(_ReducedLoss):
    """Cross-entropy with the labels, hard or soft; needs no teacher.

    Args:
        label_smoothing: share of the mass spread over all classes, in [0, 1).
        ignore_index: label of a position that does not count.
        reduction: what ``forward`` returns: "mean" over the labelled positions, "sum", or "none".
    """

    needs_teacher = False
    needs_labels = True
    counts = "labelled"
    reference = "Szegedy et al. 2016, arXiv:1512.00567 (label smoothing)"

    def __init__(
        self, label_smoothing: float = 0.0, ignore_index: int = IGNORE_INDEX, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction)
        self.label_smoothing = check_between("CELoss", "label_smoothing", label_smoothing, 0.0, 1.0, ends="[)")
        self.ignore_index = ignore_index

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return ce_loss(*tensors, **self.options("label_smoothing", "ignore_index", **options))

    def forward(self, student_logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """See :func:`ce_loss`."""
        return self.loss(student_logits, labels, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        return self.loss(out.student.logits, self.labels_of(out), mask=out.mask, reduction="none")

    def head_term(self) -> HeadTerm | None:
        own = self.options("label_smoothing", "ignore_index")
        return HeadTerm("ce") if own == {"label_smoothing": 0.0, "ignore_index": IGNORE_INDEX} else None
