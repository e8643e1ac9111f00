"""The package imports nothing that a data set does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdkit.data
from kdkit.data import _FILE_OF

HEAVY = ("torchvision", "sklearn", "datasets", "transformers", "tokenizers", "timm", "pyarrow")


@pytest.mark.parametrize("names", ["", "Tensors, CropFlip, TextFiles, StdlibText, ImageFolder, CIFAR10, FashionMNIST"])
def test_import_is_light(names: str) -> None:
    line = f"from kdkit.data import {names}" if names else "import kdkit.data"
    code = f"{line}; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_name_resolves_and_is_documented() -> None:
    assert set(kdkit.data.__all__) == set(_FILE_OF) <= set(dir(kdkit.data))
    for name in kdkit.data.__all__:
        value = getattr(kdkit.data, name)
        if isinstance(value, type) and value.__module__.startswith("kdkit."):
            assert value.__doc__, name


def test_a_typo_names_the_closest() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Digit'; did you mean 'Digits'"):
        _ = kdkit.data.Digit
