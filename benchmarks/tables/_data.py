"""Data for tables: the test split watched as papers watch it, and made-up data of the true shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from kdkit._run.build import Scene, fill_spec, make_accelerator, set_scene
from kdkit.data import Tensors
from kdkit.data._base import Batch, DataModule, Split
from kdkit.errors import ConfigError

__all__ = ["SHAPES", "Watched", "data_name", "made_up", "made_up_scene", "real_scene"]

SHAPES: dict[str, tuple[int, int, int]] = {
    "CIFAR10": (10, 3, 32),
    "CIFAR100": (100, 3, 32),
    "Digits": (10, 1, 8),
    "FashionMNIST": (10, 1, 28),
    "ImageNet": (1000, 3, 224),
}
"""Data set -> classes, channels, pixels."""

_BYTES = 200_000
"""Of the standard library, for two steps."""


class Watched(DataModule):
    """A set whose test split is looked at after every epoch, as validation; nothing is chosen by what is seen there.

    That is how the literature comes to its best epochs. Here both the last and the best epoch are written down.
    """

    def __init__(self, data: DataModule) -> None:
        self.data, self.name, self.spec, self.views = data, data.name, data.spec, data.views

    @property
    def fingerprint(self) -> str:
        """That of the set."""
        return self.data.fingerprint

    def size(self, split: Split) -> int:
        """As many for validation as for the test."""
        return self.data.size("test" if split == "val" else split)

    def batches(self, split: Split, batch_size: int, **options: Any) -> Iterator[Batch]:  # type: ignore[override]
        """Those of the test in place of the validation split."""
        return self.data.batches("test" if split == "val" else split, batch_size, **options)

    def labels(self, split: Split) -> Tensor:
        """Labels by index."""
        return self.data.labels("test" if split == "val" else split)

    def describe(self) -> dict[str, Any]:
        """As the set itself."""
        return self.data.describe()


def real_scene(cfg: DictConfig) -> Scene:
    """The scene of a cell, its test split watched if it has no validation split."""
    scene = set_scene(cfg, make_accelerator(cfg))
    if scene.data.size("val") == 0 and scene.data.size("test") > 0:
        scene.data = Watched(scene.data)
    return scene


def data_name(settings: Any) -> str:
    """The class of the data set that the settings name."""
    return str((settings["data"] or {}).get("_target_", "")).rsplit(".", 1)[-1]


def made_up(cfg: DictConfig, samples: int) -> Tensors:
    """Random images, at least ``samples`` and as many as it takes for every class to be among the labels."""
    name = data_name(cfg)
    if name not in SHAPES:
        raise ConfigError(
            f"smoke: there is no made-up form of data {name or None!r}; it is there for {', '.join(SHAPES)}"
        )
    classes, channels, pixels = SHAPES[name]
    samples = max(samples, classes)
    pixels = int(cfg.data.get("image_size") or pixels)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (samples, channels, pixels, pixels), dtype=torch.uint8, generator=rng)
    labels = torch.arange(samples) % classes
    held = images[: min(samples, 8)], labels[: min(samples, 8)]
    return Tensors(images, labels, test=held, num_classes=classes, views=int(cfg.data.get("views") or 1), name=name)


def made_up_scene(cfg: DictConfig, samples: int) -> Scene:
    """A scene with made-up data in place of those that the settings name, or a little of the standard library."""
    from kdkit._config.build import instantiate

    if data_name(cfg) == "GLUE":
        cfg.data.made_up = max(samples, 4)
        return set_scene(cfg, make_accelerator(cfg))
    if data_name(cfg) == "StdlibText":
        cfg.data.max_bytes = min(int(cfg.data.max_bytes or _BYTES), _BYTES)
        return set_scene(cfg, make_accelerator(cfg))
    data = made_up(cfg, samples)
    fill_spec(cfg, data)
    return Scene(cfg, data, instantiate(cfg.task, data.spec, where="task"), make_accelerator(cfg))
