"""CIFAR-10 and CIFAR-100 through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from kdkit.data._store import store
from kdkit.data._tensor_images import Augmentation, Images, TensorImages, divide
from kdkit.data.augment import CropFlip
from kdkit.errors import DataError

__all__ = ["CIFAR10", "CIFAR100"]

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class _CIFAR(TensorImages):
    _mean: ClassVar[tuple[float, ...]]
    _std: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        root: str | None = None,
        *,
        download: bool = True,
        val_size: int = 5000,
        train_size: int | None = None,
        labels: int | None = None,
        label_seed: int = 0,
        image_size: int | None = None,
        augment: bool = True,
        pad: int = 4,
        views: int = 1,
        strong: Augmentation | None = None,
    ) -> None:
        folder = store("datasets") if root is None else Path(root).expanduser()
        parts = [_load(type(self).__name__, folder, train, download) for train in (True, False)]
        train, test = (
            Images(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in parts
        )
        super().__init__(
            divide(train, test, val_size, train_size),
            name=type(self).__name__.lower(),
            class_names=parts[0].classes,
            mean=self._mean,
            std=self._std,
            image_size=image_size,
            labels=labels,
            label_seed=label_seed,
            augment=CropFlip(pad) if augment else None,
            views=views,
            strong=strong,
        )


class CIFAR10(_CIFAR):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes, 32x32 RGB; crop (pad 4) and flip.

    Args:
        root: torchvision's folder (the one that holds ``cifar-10-batches-py``); ``None`` for the store.
        download: whether missing files may be downloaded.
        val_size: how many training images are held out for validation; 0 trains on all 50,000, as papers do.
        train_size: use only this many of the others (class shares kept); ``None`` for all.
        labels: keep this many labels of the training split, balanced over classes; ``None`` keeps all, 0 none.
        label_seed: which samples keep their label.
        image_size: side in pixels that images are resized to, once; ``None`` for 32.
        augment: whether training batches are cropped and mirrored.
        pad: pixels of padding before the crop.
        views: 2 puts every training image into a batch twice: the second time augmented anew, with ``strong`` on top.
        strong: what the second view gets; ``None`` for :class:`~kdkit.data.RandAugment`.

    Raises:
        DataError: when the files are missing or damaged.
        InputError: when an option is out of range.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    _mean = (0.4914, 0.4822, 0.4465)
    _std = (0.2470, 0.2435, 0.2616)


class CIFAR100(_CIFAR):
    """CIFAR-100: as :class:`CIFAR10`, with 100 classes and ``cifar-100-python`` in ``root``."""

    _mean = (0.5071, 0.4867, 0.4408)
    _std = (0.2675, 0.2565, 0.2761)


def _load(name: str, root: Path, train: bool, download: bool) -> Any:
    """Torchvision's data set, which checks the MD5 sum of its files before it unpickles them."""
    import torchvision

    source = getattr(torchvision.datasets, name)
    try:
        return source(str(root), train=train, download=download)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        tried = f"the download failed: {reason}" if download else "download=false"
        raise DataError(
            f"{name}: {_state(source, root)} ({tried}); get {source.filename} from {_PAGE}, unpack it, and give the "
            f"folder that holds {source.base_folder} as data.root=… (data_dir=… for a benchmark table)"
        ) from None


def _state(source: Any, root: Path) -> str:
    """Which of the files are missing or damaged, by the MD5 sums that torchvision knows."""
    from torchvision.datasets.utils import check_integrity

    known = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    folder = root / source.base_folder
    missing = [name for name, _ in known if not (folder / name).is_file()]
    damaged = [name for name, md5 in known if name not in missing and not check_integrity(str(folder / name), md5)]
    if len(missing) == len(known):
        return f"{root} holds no {source.base_folder} with the files {', '.join(missing)}"
    found = [f"{', '.join(names)} {what}" for names, what in ((missing, "missing"), (damaged, "damaged")) if names]
    return f"{folder} is not complete: {' and '.join(found) or 'its files cannot be read'}"
