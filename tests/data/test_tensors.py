"""In-memory image sets: checks, statistics, resizing, few labels, fingerprints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.data import CropFlip, ShiftRotate, Tensors
from kdkit.data._in_memory import Resident
from kdkit.data._tensor_images import channel_statistics, describe_callable
from kdkit.errors import DataError, InputError

LABELS = torch.arange(20) % 4


def pixels(seed: int = 0, dtype: torch.dtype = torch.uint8) -> Tensor:
    out = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return out if dtype == torch.uint8 else out.float() / 255


def test_spec_is_computed_from_the_training_split() -> None:
    images = pixels()
    data = Tensors(images, LABELS, test=(pixels(1), LABELS))
    for got, want in zip(data.spec.mean, (images.double() / 255).mean((0, 2, 3))):
        assert got == pytest.approx(float(want), abs=1e-6)
    for got, want in zip(data.spec.std, (images.double() / 255).std((0, 2, 3), correction=0)):
        assert got == pytest.approx(float(want), abs=1e-6)
    assert (data.spec.num_classes, data.spec.in_chans, data.spec.image_size) == (4, 3, 8)
    assert data.spec.class_names == ("0", "1", "2", "3")


def test_statistics_agree_over_dtypes_and_survive_a_constant_channel() -> None:
    for ours, theirs in zip(channel_statistics(pixels()), channel_statistics(pixels(dtype=torch.float32))):
        assert ours == pytest.approx(theirs, abs=1e-6)
    mean, std = channel_statistics(torch.full((5, 1, 4, 4), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


def test_given_statistics_are_kept_and_counted() -> None:
    assert Tensors(pixels(), LABELS, mean=[0.1] * 3, std=[0.2] * 3).spec.std == (0.2,) * 3
    with pytest.raises(InputError, match="tensors: mean needs one value per channel, 3, got"):
        _ = Tensors(pixels(), LABELS, mean=[0.1], std=[0.2]).spec


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resized_once(dtype: torch.dtype) -> None:
    data = Tensors(pixels(dtype=dtype), LABELS, image_size=16)
    assert data.spec.image_size == 16
    batch = next(iter(data.batches("train", 20, train=False)))
    want = torch.nn.functional.interpolate(
        pixels().float() / 255, size=(16, 16), mode="bilinear", antialias=True, align_corners=False
    )
    assert torch.allclose(batch["image"], want, atol=0.003)


def test_val_is_held_out_of_train() -> None:
    data = Tensors(pixels(), LABELS, val_size=8)
    shown = [next(iter(data.batches(split, 99, train=False)))["image"] for split in ("train", "val")]
    assert [len(images) for images in shown] == [12, 8]
    assert len(torch.cat(shown).flatten(1).unique(dim=0)) == 20
    val_labels = next(iter(data.batches("val", 99, train=False)))["label"]
    assert torch.bincount(val_labels).tolist() == [2, 2, 2, 2]


def test_few_labels() -> None:
    data = Tensors(pixels(), LABELS, test=(pixels(1), LABELS), keep_labels=8)
    train = next(iter(data.batches("train", 20, train=False)))["label"]
    assert torch.bincount(train[train >= 0]).tolist() == [2, 2, 2, 2]
    assert (train == -100).sum() == 12
    assert torch.equal(next(iter(data.batches("test", 20, train=False)))["label"], LABELS)


def test_augment_applies_to_training_batches_only() -> None:
    data = Tensors(pixels(), LABELS, augment=lambda images, random: torch.zeros_like(images))
    assert next(iter(data.batches("train", 20, train=True)))["image"].sum() == 0
    assert next(iter(data.batches("train", 20, train=False)))["image"].sum() > 0


CHANGES: list[dict[str, Any]] = [
    {"image_size": 10},
    {"augment": CropFlip(1)},
    {"augment": CropFlip(2)},
    {"augment": ShiftRotate(1)},
    {"keep_labels": 8},
    {"keep_labels": 8, "label_seed": 1},
    {"val_size": 4},
    {"class_names": ["a", "b", "c", "d"]},
    {"mean": [0.5] * 3, "std": [0.5] * 3},
    {"test": (pixels(1), LABELS)},
]


def test_fingerprint_changes_with_content_and_settings() -> None:
    plain = Tensors(pixels(), LABELS).fingerprint
    seen = {Tensors(pixels(), LABELS, **change).fingerprint for change in CHANGES}
    assert plain == Tensors(pixels().clone(), LABELS, name="other").fingerprint
    one = pixels()
    one[3, 0, 2, 2] ^= 1
    seen |= {plain, Tensors(one, LABELS).fingerprint, Tensors(pixels(), LABELS.flip(0)).fingerprint}
    assert len(seen) == len(CHANGES) + 3


def test_describe_callable_has_no_addresses() -> None:
    def local(images: Tensor, random: torch.Generator) -> Tensor:
        return images

    assert describe_callable(None) is None
    assert describe_callable(CropFlip(3)) == "CropFlip(pad=3, flip=True)"
    assert str(describe_callable(local)).endswith("local")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            pixels()[0],
            LABELS,
            r"tensors train: images must be uint8 or float32 of shape \[N, C, size, size\], got uint8",
        ),
        (pixels().double(), LABELS, r"images must be uint8 or float32 .* got float64 \[20, 3, 8, 8\]"),
        (pixels()[..., :5], LABELS, r"got uint8 \[20, 3, 8, 5\]"),
        (pixels(), LABELS[:5], r"labels must be int64 of shape \[20\], got int64 \[5\]"),
        (pixels(), LABELS.int(), r"labels must be int64 of shape \[20\], got int32 \[20\]"),
        (pixels().float(), LABELS, r"float images must lie in \[0, 1\], got \[0, 255\]; scale them first"),
        (pixels(), LABELS - 1, r"labels must lie in \[0, 3\) or be -100 for unlabelled, got -1 at position 0"),
    ],
)
def test_bad_tensors(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Tensors(images, labels)


def test_bad_options() -> None:
    with pytest.raises(DataError, match=r"labels must lie in \[0, 3\) .* got 3 at position 3"):
        Tensors(pixels(), LABELS, num_classes=3)
    with pytest.raises(DataError, match="class_names needs num_classes = 4 entries, got 2"):
        Tensors(pixels(), LABELS, num_classes=4, class_names=["a", "b"])
    with pytest.raises(DataError, match="val_size must be 0 when val is given, got 3"):
        Tensors(pixels(), LABELS, val=(pixels(), LABELS), val_size=3)
    with pytest.raises(DataError, match=r"images of all splits must have the same shape, got train \(3, 8, 8\), test"):
        Tensors(pixels(), LABELS, test=(pixels()[:, :1], LABELS))
    with pytest.raises(InputError, match="image_size must be at least 1 pixel, got 0"):
        Tensors(pixels(), LABELS, image_size=0)
    with pytest.raises(DataError, match="a split needs at least one image, got none"):
        Tensors(pixels(), LABELS, test=(pixels()[:0], LABELS[:0]))


def test_resident_copies_once_and_only_what_fits() -> None:
    tensors = {"image": pixels()}
    small, big = Resident(tensors), Resident(tensors, limit=10)
    assert small.on("cpu")["image"] is tensors["image"]
    assert small.on("meta")["image"].is_meta
    assert small.on("meta")["image"] is small.on("meta")["image"]
    assert big.on("meta")["image"] is tensors["image"]
    assert len(small) == 20


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree() -> None:
    data = Tensors(pixels(), LABELS, augment=CropFlip(2))
    for host, there in zip(data.batches("train", 4, train=True), data.batches("train", 4, train=True, device="cuda")):
        for name, value in host.items():
            assert there[name].is_cuda
            assert torch.allclose(there[name].cpu(), value)
