"""Images in folders, decoded by worker processes while the network computes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdkit.data._base import Batch, DataModule, ImageSpec, Split, check_views
from kdkit.data._order import generator, micro_batches, permutation
from kdkit.data._subsets import hold_out, keep_labels
from kdkit.data._tensor_images import Augmentation
from kdkit.data.augment import describe_callable, to_unit
from kdkit.data.strong import RandAugment
from kdkit.errors import DataError, InputError

__all__ = ["ImageFolder", "ImageNet"]

_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class _Files:
    """One split: paths relative to ``folder`` as fixed-width bytes, which worker processes share for free."""

    folder: Path
    paths: np.ndarray
    labels: Tensor

    def pick(self, positions: Tensor) -> _Files:
        return _Files(self.folder, self.paths[positions.numpy()], self.labels[positions])

    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.paths[index]))  # noqa: PTH118


@dataclass(frozen=True, slots=True)
class _Transform:
    """What is done to one decoded image. With a generator: random area, aspect ratio and mirroring."""

    size: int
    crop_share: float
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, image: Any, random: torch.Generator | None) -> Tensor:
        from torchvision.transforms import functional as TF

        if random is None:
            image = TF.resize(image, round(self.size / self.crop_share), antialias=True)
            return TF.pil_to_tensor(TF.center_crop(image, self.size))
        top, left, height, width = self._window(image.height, image.width, random)
        image = TF.resized_crop(image, top, left, height, width, [self.size, self.size], antialias=True)
        if torch.rand((), generator=random) < 0.5:
            image = TF.hflip(image)
        return TF.pil_to_tensor(image)

    def _window(self, height: int, width: int, random: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop (C. Szegedy et al., Going deeper with convolutions, CVPR 2015)."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for draw in torch.rand(10, 4, generator=random).tolist():
            area = height * width * (self.scale[0] + draw[0] * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + draw[1] * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draw[2] * (height - h + 1)), int(draw[3] * (width - w + 1)), h, w
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w


class _Decoded(Dataset[Any]):
    """One epoch of one split. A file that can't be decoded comes back as the sentence that says so, because an
    exception would reach the main process with the worker's traceback glued to it."""

    def __init__(
        self,
        files: _Files,
        transform: _Transform,
        key: tuple[int, int] | None,
        augment: bool = True,
        strong: Augmentation | None = None,
    ) -> None:
        self.files, self.transform, self.key = files, transform, key
        self.augment, self.strong = augment, strong

    def __len__(self) -> int:
        return len(self.files.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        from PIL import Image

        random = None if self.key is None else generator("sample", *self.key, index)
        path = self.files.path(index)
        try:
            with Image.open(path) as image:
                return self._views(image.convert("RGB"), random)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{path} cannot be read as an image ({error}); repair or remove it"

    def _views(self, image: Any, random: torch.Generator | None) -> Tensor:
        """``[views, 3, size, size]``."""
        weak = random if self.augment else None
        views = [self.transform(image, weak)]
        if random is not None and self.strong is not None:
            views.append(self.strong(self.transform(image, weak)[None], random)[0])
        return torch.stack(views)


def _collate(samples: list[Tensor | str]) -> Tensor | str:
    """One block of images per view."""
    for sample in samples:
        if isinstance(sample, str):
            return sample
    return torch.stack(samples, dim=1).flatten(0, 1)  # type: ignore[arg-type]


class ImageFolder(DataModule):
    """Images in ``root/train/<class>/``, ``root/val/<class>/`` and, where there is one, ``root/test/<class>/``.

    Training images are cropped at random (area, aspect ratio) and mirrored; others are resized and cropped at the
    centre. What happens to an image depends on ``(seed, epoch, index)`` alone, not on the number of workers.

    Args:
        root: the folder.
        image_size: side in pixels of what the network sees.
        crop_share: side of the central crop over the shorter side of the resized image, in evaluation.
        val_size: hold this many training images out for validation instead (class shares kept); the ``val`` folder
            then serves as the test split unless there is a ``test`` folder.
        labels: keep this many labels of the training split, balanced over classes; ``None`` keeps all, 0 none.
        label_seed: which samples keep their label.
        augment: whether training images are augmented; if not, they are treated as in evaluation.
        views: 2 puts every training image into a batch twice: the second time augmented anew, with ``strong`` on top.
        strong: what the second view gets, called with uint8 images; ``None`` for :class:`~kdkit.data.RandAugment`.
        scale: smallest and largest share of the image's area that a training crop covers.
        ratio: smallest and largest aspect ratio of a training crop.
        mean: per channel in [0, 1], for networks that normalise by their data.
        std: likewise.
        num_workers: processes that decode; 0 decodes in the main process.

    Raises:
        DataError: when folders are missing or empty, or a class of ``val`` or ``test`` is not one of ``train``.
        InputError: when an option is out of range.
    """

    spec: ImageSpec
    expected: ClassVar[str] = "a folder of images, train/<class>/*.jpg and val/<class>/*.jpg in it"
    """What ``root`` is, for whoever has not given it."""

    def __init__(
        self,
        root: str,
        *,
        image_size: int = 224,
        crop_share: float = 0.875,
        val_size: int = 0,
        labels: int | None = None,
        label_seed: int = 0,
        augment: bool = True,
        views: int = 1,
        strong: Augmentation | None = None,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        num_workers: int = 4,
    ) -> None:
        self.root = Path(root).expanduser()
        self.name = self.root.resolve().name
        _check_options(type(self).__name__, image_size, crop_share, scale, ratio, mean, std, num_workers)
        classes = self._classes()
        splits = _list_splits(self.root, classes)
        if val_size:
            kept, held = hold_out(splits["train"].labels, val_size, "val_size")
            if "val" in splits:
                splits.setdefault("test", splits["val"])
            splits["val"], splits["train"] = splits["train"].pick(held), splits["train"].pick(kept)
        if labels is not None:
            train = splits["train"]
            few = keep_labels(train.labels, labels, len(classes), label_seed)
            splits["train"] = _Files(train.folder, train.paths, few)
        self._splits = splits
        self._transform = _Transform(image_size, float(crop_share), (scale[0], scale[1]), (ratio[0], ratio[1]))
        self._augment, self.fixed = augment, not augment
        self.views = check_views(views)
        self._strong = (strong or RandAugment()) if views > 1 else None
        self.num_workers = num_workers
        self.spec = ImageSpec(len(classes), 3, image_size, tuple(mean), tuple(std), tuple(classes))

    def _classes(self) -> list[str]:
        train = self.root / "train"
        if not train.is_dir():
            missing = train if self.root.is_dir() else self.root
            raise DataError(f"{missing} does not exist; data.root must be {self.expected}")
        classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
        if not classes:
            raise DataError(f"{train} holds no class folders; put the images of each class into a folder of its own")
        return classes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over relative paths, file sizes, labels, splits and what is done to the images."""
        shown = [repr(self._transform), self._augment, self.spec.mean, self.spec.std, self.spec.class_names]
        if self.views > 1:
            shown += [self.views, describe_callable(self._strong)]
        digest = hashlib.sha256(json.dumps(shown).encode())
        for split in sorted(self._splits):
            files = self._splits[split]
            for index, label in enumerate(files.labels.tolist()):
                path = files.path(index)
                relative = os.path.relpath(path, self.root)
                digest.update(f"{split}\0{relative}\0{Path(path).stat().st_size}\0{label}\n".encode("utf-8", "replace"))
        return digest.hexdigest()

    def size(self, split: Split) -> int:
        """Number of images in a split; 0 when there is none."""
        return len(self._splits[split].paths) if split in self._splits else 0

    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """See :meth:`DataModule.batches`."""
        size = self.size(split)
        numbers = micro_batches(size, batch_size, train=train, start=start, rank=rank, world_size=world_size)
        if not numbers:
            return
        files = self._splits[split]
        order = permutation(size, seed, epoch) if train else torch.arange(size)
        indices = [order[j * batch_size : (j + 1) * batch_size] for j in numbers]
        strong = self._strong if train else None
        key = (seed, epoch) if train and (self._augment or strong is not None) else None
        loader = DataLoader(
            _Decoded(files, self._transform, key, self._augment, strong),
            batch_sampler=[index.tolist() for index in indices],
            num_workers=min(self.num_workers, len(indices)),
            collate_fn=_collate,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # the loader would draw from the global one
        )
        for index, images in zip(indices, loader):
            if isinstance(images, str):
                raise DataError(images)
            index = index.repeat(self.views if train else 1)
            yield {
                "image": to_unit(images.to(device, non_blocking=True)),
                "label": files.labels[index].to(device, non_blocking=True),
                "index": index.to(device, non_blocking=True),
            }


class ImageNet(ImageFolder):
    """ImageNet-1k in the layout of :class:`ImageFolder`: 1,000 folders named by WordNet ids (``n01440764``, ...).

    Arguments are those of :class:`ImageFolder`.

    Raises:
        DataError: also when ``root/train`` does not hold exactly these 1,000 folders.

    Source: O. Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 2015.
    """

    expected: ClassVar[str] = (
        "the folder with the ILSVRC2012 images of https://image-net.org/download-images.php unpacked into train/ and "
        "val/, each with 1,000 folders named by WordNet ids (n01440764, …; data_dir=… of a benchmark table)"
    )

    def _classes(self) -> list[str]:
        packed = next((self.root / name for name in _ARCHIVES if (self.root / name).is_file()), None)
        if packed is not None and not (self.root / "train").is_dir():
            raise DataError(f"{packed} is not unpacked; data.root must be {self.expected}")
        classes = super()._classes()
        strange = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
        if strange or len(classes) != 1000:
            what = f", among them {strange[0]!r}" if strange else _lacking(classes)
            raise DataError(
                f"ImageNet: {self.root / 'train'} must hold 1,000 folders named by WordNet ids such as n01440764, "
                f"got {len(classes)}{what}; data.root must be {self.expected}; kdkit.data.ImageFolder "
                "(data=image_folder) takes other classes"
            )
        return classes


def _lacking(classes: Sequence[str]) -> str:
    """Which of the thousand are not there."""
    from timm.data import ImageNetInfo

    lacking = sorted(set(ImageNetInfo().label_names()) - set(classes))
    return f", without {', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}" if lacking else ""


def _check_options(
    name: str,
    image_size: int,
    crop_share: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    mean: Sequence[float],
    std: Sequence[float],
    num_workers: int,
) -> None:
    if image_size < 1:
        raise InputError(f"{name}: image_size must be at least 1 pixel, got {image_size}")
    if not 0 < crop_share <= 1:
        raise InputError(f"{name}: crop_share must lie in (0, 1], got {crop_share}")
    for argument, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise InputError(f"{name}: {argument} must be (low, high) above 0, got ({low}, {high})")
    for argument, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            what = f"{argument} must have 3 entries, one per channel, got {tuple(values)}"
            raise InputError(f"{name}: {what}")
    if num_workers < 0:
        raise InputError(f"{name}: num_workers must not be negative, got {num_workers}")


def _list_splits(root: Path, classes: list[str]) -> dict[Split, _Files]:
    splits: dict[Split, _Files] = {}
    names: tuple[Split, ...] = ("train", "val", "test")
    for split in names:
        if (root / split).is_dir():
            splits[split] = _list_files(root / split, classes)
    if len(splits) == 1:
        raise DataError(f"{root} has neither val/ nor test/ beside train/; add one of them, with a folder per class")
    return splits


def _list_files(folder: Path, classes: list[str]) -> _Files:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    strange = sorted({entry.name for entry in folder.iterdir() if entry.is_dir()} - set(classes))
    if strange:
        raise DataError(f"{folder}: class {strange[0]!r} is not among the {len(classes)} classes of train; remove it")
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        samples = make_dataset(str(folder), numbers, IMG_EXTENSIONS, allow_empty=folder.name != "train")
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}; remove the empty folders or add images") from None
    if not samples:
        loose = sum(entry.suffix.lower() in IMG_EXTENSIONS for entry in folder.iterdir())
        if loose:
            raise DataError(
                f"{folder} holds {loose:,} images beside each other; move each into the folder of its class, "
                f"{folder / classes[0]} and so on (for ImageNet the ILSVRC2012 development kit lists the classes)"
            )
        raise DataError(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}); copy them there")
    paths = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in samples])
    return _Files(folder, paths, torch.tensor([label for _, label in samples]))
