"""Mean feature per class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.data._base import Batch, DataModule, ImageSpec, Split
from kdkit.errors import ConfigError
from kdkit.models import small_cnn
from kdkit.tasks import Classification
from kdkit.teachers import LiveTeacher, class_means

SPEC = ImageSpec(3, 1, 8, (0.5,), (0.25,), class_names=("cat", "dog", "owl"))
TASK = Classification(SPEC)


class Fixed(DataModule):
    """Images in memory; refuses to be shown in training mode."""

    name = "fixed"
    spec = SPEC

    def __init__(self, labels: Tensor | None) -> None:
        self.labels = labels
        self.images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    @property
    def fingerprint(self) -> str:
        return "0"

    def size(self, split: Split) -> int:
        return 20 if split == "train" else 0

    def batches(self, split: Split, batch_size: int, *, train: bool, **options: Any) -> Iterator[Batch]:
        assert split == "train"
        assert not train
        for part in torch.arange(20).split(batch_size):
            batch = {"image": self.images[part], "index": part}
            yield batch if self.labels is None else {**batch, "label": self.labels[part]}


def teacher(**layers: str) -> LiveTeacher:
    torch.manual_seed(0)
    live = LiveTeacher(TASK.wrap(small_cnn(4, num_classes=3)), TASK)
    live.tap(layers or {"nd": "penultimate"})
    return live


def labels() -> Tensor:
    values = torch.arange(20) % 3
    values[5:9] = -100
    return values


@pytest.mark.parametrize("batch_size", [3, 20])
def test_means(batch_size: int) -> None:
    data, live = Fixed(labels()), teacher()
    means = class_means(live, data, "nd", 3, batch_size=batch_size)
    features = live({"image": data.images}).features["nd"]
    expected = torch.stack([features[labels() == k].mean(0) for k in range(3)])
    assert means.dtype == torch.float32
    assert means.shape == (3, 16)
    torch.testing.assert_close(means, expected)


def test_a_class_without_samples_is_named() -> None:
    values = labels()
    values[values == 1] = -100
    with pytest.raises(
        ConfigError, match=r"sample of every class, fixed has none of 1: dog; label more samples or drop"
    ):
        class_means(teacher(), Fixed(values), "nd", 3)
    with pytest.raises(ConfigError, match=r"fixed has none of 13: cat, dog, owl, 3, 4, 5, 6, 7, 8, 9, \.\.\.; label"):
        class_means(teacher(), Fixed(torch.full((20,), -100)), "nd", 13)


def test_other_refusals() -> None:
    with pytest.raises(ConfigError, match=r"need one class per image, fixed has none"):
        class_means(teacher(), Fixed(None), "nd", 3)
    with pytest.raises(ConfigError, match=r"need one class per image, fixed has none"):
        class_means(teacher(), Fixed(torch.zeros(20, 3)), "nd", 3)
    with pytest.raises(ConfigError, match=r"need feature 'nd' of the teacher, which records \['other'\]"):
        class_means(teacher(other="penultimate"), Fixed(labels()), "nd", 3)
    with pytest.raises(ConfigError, match=r"need a vector per image, feature 'nd' of the teacher is \[20, 4, 8, 8\]"):
        class_means(teacher(nd="block1"), Fixed(labels()), "nd", 3)
