"""The mean feature of each class, as the ND loss wants it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.data._base import Batch, DataModule
from kdkit.errors import ConfigError
from kdkit.outputs import IGNORE_INDEX
from kdkit.teachers._base import Teacher

__all__ = ["class_means"]


def class_means(
    teacher: Teacher,
    data: DataModule,
    pair: str,
    num_classes: int,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Mean feature per class over the training split.

    .. math:: c_k = \frac{1}{|\{i : y_i = k\}|} \sum_{i : y_i = k} f_t(x_i)

    Images are shown as in evaluation: no augmentation, nothing random, each once. Images without a label do not
    enter. Sums are kept in float64.

    Args:
        teacher: one that records the pair already (:meth:`~kdkit.teachers.Teacher.tap`).
        data: images with labels.
        pair: name of the feature pair; the feature must be ``[B, D]``.
        num_classes: number of classes ``C``.
        batch_size: images per batch; the result does not depend on it beyond rounding.
        device: where the teacher is.

    Returns:
        float32 ``[C, D]`` on ``device``.

    Raises:
        ConfigError: if a class has no labelled training sample, the pair is not recorded, the feature is no
            vector, or the data carry no class labels.
    """
    sums: Tensor | None = None
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for batch in data.batches("train", batch_size, train=False, device=device):
        labels = _labels(batch, data.name)
        keep = labels != IGNORE_INDEX
        if not bool(keep.any()):
            continue
        chosen = labels[keep]
        feature = _feature(teacher, batch, pair)[keep].double()
        if sums is None:
            sums = torch.zeros(num_classes, feature.shape[1], dtype=torch.float64, device=feature.device)
        sums.index_add_(0, chosen, feature)
        counts += torch.bincount(chosen.cpu(), minlength=num_classes)
    missing = (counts == 0).nonzero().flatten().tolist()
    if sums is None or missing:
        names = getattr(data.spec, "class_names", ())
        shown = ", ".join(str(names[k]) if k < len(names) else str(k) for k in missing[:10])
        raise ConfigError(
            f"class means need a labelled training sample of every class, {data.name} has none of {len(missing)}: "
            f"{shown}{', ...' if len(missing) > 10 else ''}; label more samples or drop the loss that needs them"
        )
    return (sums / counts.to(sums.device)[:, None]).float()


def _labels(batch: Batch, name: str) -> Tensor:
    labels = batch.get("label")
    if labels is None or labels.is_floating_point():
        raise ConfigError(f"class means need one class per image, {name} has none; drop the loss that needs them (nd)")
    return labels


def _feature(teacher: Teacher, batch: Batch, pair: str) -> Tensor:
    features = teacher(batch).features
    if pair not in features:
        raise ConfigError(f"class means need feature '{pair}' of the teacher, which records {sorted(features)}")
    if features[pair].dim() != 2:
        raise ConfigError(
            f"class means need a vector per image, feature '{pair}' of the teacher is {list(features[pair].shape)}; "
            "tap 'penultimate' or a pooled layer"
        )
    return features[pair]
