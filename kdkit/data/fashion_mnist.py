"""Fashion-MNIST, from the distribution's files or by download."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from kdkit.data._store import store
from kdkit.data._tensor_images import Augmentation, Images, TensorImages, divide
from kdkit.data.augment import CropFlip
from kdkit.errors import DataError

__all__ = ["FashionMNIST"]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class FashionMNIST(TensorImages):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28x28 grey.

    Args:
        root: folder with the four ``*-ubyte.gz`` files (or their unpacked form), or the one to download into;
            ``None`` takes Debian's folder when its package is installed, else the store.
        download: whether missing files may be downloaded.
        val_size: how many training images are held out for validation (class shares kept, always the same ones).
        train_size: use only this many of the others (class shares kept); ``None`` for all.
        labels: keep this many labels of the training split, balanced over classes; ``None`` keeps all, 0 none.
        label_seed: which samples keep their label.
        image_size: side in pixels that images are resized to, once; ``None`` for 28.
        augment: whether training batches are cropped and mirrored.
        pad: pixels of padding before the crop.
        views: 2 puts every training image into a batch twice: the second time augmented anew, with ``strong`` on top.
        strong: what the second view gets; ``None`` for :class:`~kdkit.data.RandAugment`.

    Raises:
        DataError: when the files are missing or damaged.
        InputError: when an option is out of range.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017.
    """

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
        pad: int = 2,
        views: int = 1,
        strong: Augmentation | None = None,
    ) -> None:
        folder = _find(root, download)
        train, test = (Images(*(_read_idx(folder, name) for name in _PARTS[part])) for part in ("train", "test"))
        super().__init__(
            divide(train, test, val_size, train_size),
            name="fashion_mnist",
            class_names=_CLASSES,
            image_size=image_size,
            labels=labels,
            label_seed=label_seed,
            augment=CropFlip(pad) if augment else None,
            views=views,
            strong=strong,
        )


def _missing(folder: Path) -> list[str]:
    """Those of the four files that are in neither form."""
    names = [name for pair in _PARTS.values() for name in pair]
    return [f"{name}.gz" for name in names if not ((folder / f"{name}.gz").is_file() or (folder / name).is_file())]


def _find(root: str | None, download: bool) -> Path:
    target = store("datasets") if root is None else Path(root).expanduser()
    raw = target / "FashionMNIST" / "raw"
    places = (target, raw) if root is not None else (DEBIAN_FOLDER, raw)
    for folder in places:
        if not _missing(folder):
            return folder
    reason = "download=false"
    if download:
        from torchvision.datasets import FashionMNIST as Torchvision

        new = [folder for folder in (raw, *raw.parents) if not folder.exists()]
        try:
            Torchvision(str(target), download=True)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                for folder in new:
                    folder.rmdir()
            reason = f"the download failed ({' '.join(str(error).split()) or type(error).__name__})"
    if not _missing(raw):
        return raw
    fullest = min((target, *places), key=lambda folder: len(_missing(folder)))
    raise DataError(
        f"FashionMNIST: {', '.join(_missing(fullest))} missing in {fullest} and {reason}; run `apt install "
        "dataset-fashion-mnist`, or get the four files from https://github.com/zalandoresearch/fashion-mnist and give "
        "their folder as data.root=… (data_dir=… for a benchmark table)"
    )


def _read_idx(folder: Path, name: str) -> Tensor:
    """An idx file: uint8 ``[N, 1, H, W]`` for images, int64 ``[N]`` for labels."""
    packed = folder / f"{name}.gz"
    path = packed if packed.is_file() else folder / name
    try:
        content = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it and get it again") from None
    ndim = 3 if "idx3" in name else 1
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim)]
    body = memoryview(content)[4 + 4 * ndim :]
    if content[:4] != bytes((0, 0, 8, ndim)) or len(body) != torch.Size(shape).numel():
        raise DataError(f"{path} is not a whole idx file of {ndim}-dimensional bytes; remove it and get it again")
    values = torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape)
    return values[:, None] if ndim == 3 else values.long()
