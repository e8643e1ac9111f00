"""Batched augmentations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.data.augment import CropFlip, ShiftRotate, to_unit
from kdkit.errors import InputError


@pytest.fixture
def images() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (40, 3, 6, 6), generator=random, dtype=torch.uint8)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crop_flip_gives_crops_and_mirror_images(images: Tensor) -> None:
    out = CropFlip(2)(images, draw())
    assert out.dtype == torch.uint8
    assert out.shape == images.shape
    seen = set()
    for image, got in zip(F.pad(images, (2, 2, 2, 2)), out):
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(
                image[:, top : top + 6, left : left + 6].flip(-1) if flip else image[:, top : top + 6, left : left + 6],
                got,
            )
        ]
        assert found
        seen.add(found[0])
    assert {flip for _, _, flip in seen} == {False, True}
    assert len({place[:2] for place in seen}) > 10


def test_augmentation_follows_the_generator_and_the_dtype_keeps_the_draw(images: Tensor) -> None:
    augment = CropFlip(2)
    assert torch.equal(augment(images, draw()), augment(images, draw()))
    assert not torch.equal(augment(images, draw()), augment(images, draw(1)))
    assert torch.equal(augment(to_unit(images), draw()), to_unit(augment(images, draw())))


def test_nothing_to_do_changes_nothing(images: Tensor) -> None:
    assert torch.equal(CropFlip(0, flip=False)(images, draw()), images)
    assert torch.equal(ShiftRotate(0, 0)(images, draw()), images)


def test_shift_moves_zeros_in() -> None:
    image = torch.zeros(64, 1, 5, 5)
    image[:, :, 2, 2] = 1
    out = ShiftRotate(1)(image, draw())
    places = {tuple(place[1:].tolist()) for place in out[:, 0].nonzero()}
    assert places == {(y, x) for y in (1, 2, 3) for x in (1, 2, 3)}
    assert out.sum() == 64


def test_rotation_turns_within_its_range() -> None:
    bar = torch.zeros(200, 1, 33, 33)
    bar[:, :, :, 16] = 1
    out = ShiftRotate(0, 30)(bar, draw())
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    top = out[:, 0, 4].argmax(dim=-1) - 16  # 12 pixels above the centre
    angle = torch.atan2(top.double(), torch.tensor(12.0, dtype=torch.float64)).rad2deg()
    assert angle.abs().max() < 33
    assert angle.min() < -20
    assert angle.max() > 20


def test_to_unit(images: Tensor) -> None:
    assert torch.equal(to_unit(images), images.float() / 255)
    floats = torch.rand(2, 3)
    assert torch.equal(to_unit(floats), floats)


def test_bad_options() -> None:
    with pytest.raises(InputError, match="CropFlip: pad must not be negative, got -1"):
        CropFlip(-1)
    with pytest.raises(InputError, match="ShiftRotate: shift must not be negative, got -2"):
        ShiftRotate(-2)
    with pytest.raises(InputError, match="ShiftRotate: rotate must be between 0 and 180 degrees, got 181"):
        ShiftRotate(0, 181)
