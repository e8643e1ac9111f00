"""Data sets. Each name is imported from its own file on first use, so that this package stays light."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdkit.errors import did_you_mean

if TYPE_CHECKING:
    from kdkit.data._alignment import align_tokens, match_vocabularies
    from kdkit.data._base import Batch, DataModule, ImageSpec, LabelledTextSpec, Split, TextSpec
    from kdkit.data._labelled_texts import LabelledTexts
    from kdkit.data._tensor_images import Images, TensorImages
    from kdkit.data.augment import CropFlip, ShiftRotate
    from kdkit.data.cifar import CIFAR10, CIFAR100
    from kdkit.data.digits import Digits
    from kdkit.data.fashion_mnist import FashionMNIST
    from kdkit.data.folder import ImageFolder, ImageNet
    from kdkit.data.glue import GLUE
    from kdkit.data.hub_text import HubText
    from kdkit.data.stdlib_docstrings import StdlibDocstrings
    from kdkit.data.stdlib_labels import StdlibLabels
    from kdkit.data.stdlib_text import StdlibText
    from kdkit.data.strong import AutoAugment, Compose, Cutout, RandAugment
    from kdkit.data.tensors import Tensors
    from kdkit.data.text_files import TextFiles

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "GLUE",
    "AutoAugment",
    "Batch",
    "Compose",
    "CropFlip",
    "Cutout",
    "DataModule",
    "Digits",
    "FashionMNIST",
    "HubText",
    "ImageFolder",
    "ImageNet",
    "ImageSpec",
    "Images",
    "LabelledTextSpec",
    "LabelledTexts",
    "RandAugment",
    "ShiftRotate",
    "Split",
    "StdlibDocstrings",
    "StdlibLabels",
    "StdlibText",
    "TensorImages",
    "Tensors",
    "TextFiles",
    "TextSpec",
    "align_tokens",
    "match_vocabularies",
]

_FILES = {
    "_alignment": ("align_tokens", "match_vocabularies"),
    "_base": ("Batch", "DataModule", "ImageSpec", "LabelledTextSpec", "Split", "TextSpec"),
    "_labelled_texts": ("LabelledTexts",),
    "_tensor_images": ("Images", "TensorImages"),
    "augment": ("CropFlip", "ShiftRotate"),
    "cifar": ("CIFAR10", "CIFAR100"),
    "digits": ("Digits",),
    "fashion_mnist": ("FashionMNIST",),
    "folder": ("ImageFolder", "ImageNet"),
    "glue": ("GLUE",),
    "hub_text": ("HubText",),
    "stdlib_docstrings": ("StdlibDocstrings",),
    "stdlib_labels": ("StdlibLabels",),
    "stdlib_text": ("StdlibText",),
    "strong": ("AutoAugment", "Compose", "Cutout", "RandAugment"),
    "tensors": ("Tensors",),
    "text_files": ("TextFiles",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        hint = "" if name.startswith("_") else did_you_mean(name, __all__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
