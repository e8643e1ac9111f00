"""What the losses that compare two features of one shape entry by entry share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import FeatureLoss
from kdkit.losses._checks import check_features, check_maps, check_mask, refuse
from kdkit.losses._relations import clean_samples
from kdkit.outputs import StepOutputs

__all__ = ["ElementwiseLoss", "alike", "row_means"]


def alike(name: str, student_features: Tensor, teacher_features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both features in at least float32 and one dtype, the teacher's detached, zeros where masked.

    A position is a row of ``[B, D]`` or ``[B, T, D]``, or a sample of ``[B, C, H, W]``.

    Raises:
        InputError: for other or different shapes, and masks that do not fit.
    """
    if isinstance(student_features, Tensor) and student_features.ndim == 4:
        check_maps(name, "student_features", student_features)
        check_maps(name, "teacher_features", teacher_features)
        if student_features.shape != teacher_features.shape:
            rule = f"of the shape of student_features, {list(student_features.shape)}"
            refuse(
                name, "teacher_features", rule, teacher_features, "put a projector on the student's side of the pair"
            )
        check_mask(name, mask, student_features.shape[:1])
    else:
        check_features(name, student_features, teacher_features, mask)
    student, teacher = (clean_samples(side, mask) for side in (student_features, teacher_features.detach()))
    return student, teacher.to(student.dtype)


def row_means(values: Tensor) -> Tensor:
    """Mean over the last dimension; the gradient of a sum is spread without a division of every entry."""
    return values.sum(dim=-1) / values.shape[-1]


class ElementwiseLoss(FeatureLoss):
    """A loss of one pair of vectors, tokens or maps of one shape.

    Where images give tokens ``[B, T, D]``, a position is an image, and its tokens count as the pixels of a map.

    Args:
        pair: name of the pair in the ``features`` settings.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reads_logits = False

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        features: tuple[Any, ...] = self.features_of(out, self.pair)
        if out.student.logits.ndim == 2 and features[0].ndim == features[1].ndim == 3:
            features = tuple(side.mT.unsqueeze(-1) for side in features)
        return self.loss(*features, mask=out.mask, reduction="none")
