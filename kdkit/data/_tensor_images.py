"""Image sets that live in memory as one tensor per split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.data._base import Batch, ImageSpec, Split, check_views
from kdkit.data._in_memory import InMemory, Resident
from kdkit.data._subsets import check_labels, hold_out, keep_labels
from kdkit.data.augment import describe_callable, to_unit
from kdkit.data.strong import RandAugment
from kdkit.errors import DataError, InputError
from kdkit.outputs import IGNORE_INDEX

__all__ = [
    "Augmentation",
    "Images",
    "TensorImages",
    "channel_statistics",
    "check_images",
    "describe_callable",
    "divide",
]

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""``f(images [B, C, H, W], generator) -> images``. Images come as they are held (uint8, or float32 in [0, 1])
and go back likewise; random numbers should come from the generator alone."""

_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Images:
    """One split.

    Attributes:
        images: ``[N, C, H, W]``, uint8, or float32 in [0, 1].
        labels: int64 ``[N]`` in ``[0, num_classes)``, -100 for unlabelled.
    """

    images: Tensor
    labels: Tensor

    def pick(self, positions: Tensor) -> Images:
        """The samples at these positions."""
        return Images(self.images[positions], self.labels[positions])


class TensorImages(InMemory):
    """Base of the image sets that are held in memory, on the device when they fit, augmented there in batches.

    Args:
        splits: ``train`` and, where there are any, ``val`` and ``test``.
        name: how reports call the set.
        class_names: one per class.
        mean: per channel in [0, 1]; computed from the training split when ``None``.
        std: likewise.
        image_size: side in pixels that images are resized to, once (bilinear, antialiased); ``None`` keeps theirs.
        labels: keep this many labels of the training split, balanced over classes; ``None`` keeps all, 0 none.
        label_seed: which samples keep their label.
        augment: applied to training batches, or ``None``.
        views: 2 puts every image of a training batch in twice: augmented, and augmented by another draw and
            ``strong`` on top.
        strong: what the second view gets besides; ``None`` for :class:`~kdkit.data.RandAugment`.

    Raises:
        DataError: when tensors or labels break the contract of :class:`Images`.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        splits: Mapping[Split, Images],
        *,
        name: str,
        class_names: Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
        labels: int | None = None,
        label_seed: int = 0,
        augment: Augmentation | None = None,
        views: int = 1,
        strong: Augmentation | None = None,
    ) -> None:
        self.name = name
        self.augment, self.fixed = augment, augment is None
        self.views = check_views(views)
        self.strong = strong or RandAugment()
        self._class_names = tuple(class_names)
        self._given = (None if mean is None else tuple(mean), None if std is None else tuple(std))
        for split, data in splits.items():
            check_images(data, len(self._class_names), f"{name} {split}")
        if len({data.images.shape[1:] for data in splits.values()}) > 1:
            shapes = ", ".join(f"{split} {tuple(data.images.shape[1:])}" for split, data in splits.items())
            raise DataError(f"{name}: images of all splits must have the same shape, got {shapes}")
        splits = dict(splits)
        if labels is not None:
            kept = keep_labels(splits["train"].labels, labels, len(self._class_names), label_seed)
            splits["train"] = Images(splits["train"].images, kept)
        self._source = splits
        self._image_size = image_size
        self._splits = {
            split: Resident({"image": _resize(data.images, image_size), "label": data.labels})
            for split, data in splits.items()
        }

    @cached_property
    def spec(self) -> ImageSpec:  # type: ignore[override]
        """Shape, mean and standard deviation."""
        images = self._splits["train"].tensors["image"]
        mean, std = self._given
        if mean is None or std is None:
            computed = channel_statistics(images)
            mean, std = mean or computed[0], std or computed[1]
        for argument, values in (("mean", mean), ("std", std)):
            if len(values) != images.shape[1]:
                raise InputError(
                    f"{self.name}: {argument} needs one value per channel, {images.shape[1]}, got {values}"
                )
        return ImageSpec(len(self._class_names), images.shape[1], images.shape[-1], mean, std, self._class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels, splits, size, normalisation and augmentation."""
        shown = [self._class_names, self._image_size, self.spec.mean, self.spec.std, describe_callable(self.augment)]
        if self.views > 1:
            shown += [self.views, describe_callable(self.strong)]
        digest = hashlib.sha256(json.dumps(shown).encode())
        for split in sorted(self._source):
            data = self._source[split]
            digest.update(f"{split} {data.images.dtype} {tuple(data.images.shape)}".encode())
            digest.update(data.images.reshape(-1).numpy().data)
            digest.update(data.labels.reshape(-1).numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Also ``labelled``: training samples that carry a label."""
        labelled = int((self._source["train"].labels != IGNORE_INDEX).sum())
        return {**super().describe(), "labelled": labelled}

    def _finish(self, batch: Batch, random: torch.Generator | None) -> Batch:
        images = batch["image"]
        if random is None:
            return {**batch, "image": to_unit(images)}
        first = to_unit(self._augmented(images, random))
        if self.views == 1:
            return {**batch, "image": first}
        second = to_unit(self.strong(self._augmented(images, random), random))
        pairs = {name: torch.cat([values, values]) for name, values in batch.items() if name != "image"}
        return {"image": torch.cat([first, second]), **pairs}

    def _augmented(self, images: Tensor, random: torch.Generator) -> Tensor:
        return images if self.augment is None else self.augment(images, random)


def divide(train: Images, test: Images, val_size: int, train_size: int | None) -> dict[Split, Images]:
    """Splits with ``val_size`` training images held out and ``train_size`` of the others kept."""
    kept, held = hold_out(train.labels, val_size, "val_size")
    splits: dict[Split, Images] = {"train": train.pick(kept), "test": test}
    if val_size:
        splits["val"] = train.pick(held)
    if train_size is not None and train_size != len(kept):
        if not 1 <= train_size <= len(kept):
            raise InputError(f"train_size must be between 1 and {len(kept)}, got {train_size}; null takes all")
        splits["train"] = splits["train"].pick(hold_out(splits["train"].labels, train_size, "train_size")[1])
    return splits


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over ``[N, C, H, W]`` images in [0, 1] (uint8 counts as 255ths).

    A constant channel gets a standard deviation of 1, so that dividing by it is harmless.
    """
    means, stds = [], []
    for channel in images.unbind(1):
        if channel.dtype == torch.uint8:
            weight = torch.bincount(channel.reshape(-1), minlength=256).double()
            value = torch.arange(256, dtype=torch.float64) / 255
            mean = (weight * value).sum() / weight.sum()
            variance = (weight * (value - mean) ** 2).sum() / weight.sum()
        else:
            variance, mean = torch.var_mean(channel.double(), correction=0)
        means.append(round(float(mean), 6))
        stds.append(round(float(variance.sqrt()), 6) or 1.0)
    return tuple(means), tuple(stds)


def check_images(data: Images, num_classes: int, where: str) -> None:
    """Refuse tensors that break the contract of :class:`Images`.

    Raises:
        DataError: starting with ``where``.
    """
    images, labels = data.images, data.labels
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32) or images.shape[-1] != images.shape[-2]:
        raise DataError(
            f"{where}: images must be uint8 or float32 of shape [N, C, size, size], "
            f"got {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: labels must be int64 of shape [{len(images)}], "
            f"got {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        )
    if len(images) == 0:
        raise DataError(f"{where}: a split needs at least one image, got none; leave the split out instead")
    if images.dtype == torch.float32:
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= 0 and high <= 1):
            raise DataError(f"{where}: float images must lie in [0, 1], got [{low:g}, {high:g}]; scale them first")
    check_labels(labels, num_classes, where)


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[-1] == size:
        return images
    if size < 1:
        raise InputError(f"image_size must be at least 1 pixel, got {size}")
    out = torch.empty(*images.shape[:2], size, size, dtype=images.dtype)
    for begin in range(0, len(images), _CHUNK):
        chunk = images[begin : begin + _CHUNK].float()
        chunk = F.interpolate(chunk, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        out[begin : begin + _CHUNK] = chunk.round_() if images.dtype == torch.uint8 else chunk.clamp_(0, 1)
    return out
