"""The one check of class labels and target tokens."""

from __future__ import annotations

from torch import Tensor

from kdkit.errors import DataError
from kdkit.outputs import IGNORE_INDEX

__all__ = ["check_labels"]


def check_labels(labels: Tensor, classes: int, advice: str) -> None:
    """Refuse labels that a network with so many outputs can not mean.

    Args:
        labels: int64 of any shape (-100 = none), or float ``[B, C]`` for soft labels.
        classes: number of outputs.
        advice: the way out, for the message.

    Raises:
        DataError: for a label outside ``0..classes - 1``, or soft labels of another width.
    """
    if labels.is_floating_point():
        if labels.dim() != 2 or labels.shape[1] != classes:
            raise DataError(
                f"soft labels must be [B, {classes}] for {classes} classes, got {list(labels.shape)}; {advice}"
            )
        return
    wrong = labels[(labels != IGNORE_INDEX) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise DataError(
            f"labels must lie in 0..{classes - 1} (or be {IGNORE_INDEX} for none), got {int(wrong[0])}; {advice}"
        )
