"""What every data set promises, checked on one small instance of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdkit.data import CropFlip, DataModule, Digits, ImageFolder, ImageSpec, Tensors, TextFiles
from kdkit.data._base import Batch
from kdkit.errors import DataError, InputError

KINDS = ["tensors", "digits", "folder", "text", "unpacked"]
IMAGE_KEYS = {"image", "label", "index"}
TEXT_KEYS = {"input_ids", "labels", "document_ids", "position_ids", "num_bytes", "index"}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[[], DataModule]:
    random = torch.Generator().manual_seed(1)

    def build() -> DataModule:
        if request.param == "tensors":
            images = torch.randint(0, 256, (50, 3, 8, 8), generator=random.manual_seed(1), dtype=torch.uint8)
            return Tensors(images, torch.arange(50) % 5, val_size=10, augment=CropFlip(2))
        if request.param == "digits":
            return Digits(shift=1, rotate=15.0)
        if request.param == "folder":
            return ImageFolder(str(request.getfixturevalue("image_folder")), image_size=16, num_workers=0)
        path: Path = request.getfixturevalue("jsonl")
        return TextFiles(str(path), vocab_size=300, context=16, packing=request.param == "text")

    return build


@pytest.fixture
def data(make: Callable[[], DataModule]) -> DataModule:
    return make()


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(first, second)
    )


def test_batches_hold_what_the_contract_says(data: DataModule) -> None:
    image = isinstance(data.spec, ImageSpec)
    for train in (True, False):
        batch = next(iter(data.batches("train", 4, train=train)))
        assert set(batch) == (IMAGE_KEYS if image else TEXT_KEYS)
        for name, value in batch.items():
            assert value.dtype == (torch.float32 if name == "image" else torch.int64)
            assert len(value) == 4
        if image:
            size = data.spec.image_size
            assert batch["image"].shape == (4, data.spec.in_chans, size, size)
            assert batch["image"].min() >= 0
            assert batch["image"].max() <= 1
        else:
            assert batch["input_ids"].shape == (4, data.spec.context)
            assert batch["input_ids"].max() < data.spec.vocab_size


def test_same_key_same_batches(make: Callable[[], DataModule]) -> None:
    first = list(make().batches("train", 4, train=True, seed=3, epoch=2))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, list(make().batches("train", 4, train=True, seed=3, epoch=2)))
    assert torch.equal(torch.get_rng_state(), state), "global random state was touched"


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}])
def test_seed_and_epoch_change_the_order(data: DataModule, change: dict[str, int]) -> None:
    first = list(data.batches("train", 4, train=True, seed=3, epoch=2))
    second = list(data.batches("train", 4, train=True, **{"seed": 3, "epoch": 2} | change))
    assert not same(first, second)


def test_training_visits_each_sample_at_most_once_and_drops_the_rest(data: DataModule) -> None:
    size, step = data.size("train"), 4
    batches = list(data.batches("train", step, train=True))
    index = torch.cat([batch["index"] for batch in batches])
    assert len(batches) == data.num_batches("train", step, train=True) == size // step
    assert len(index.unique()) == len(index) == size // step * step
    assert all(len(batch["index"]) == step for batch in batches)


@pytest.mark.parametrize("split", ["train", "val"])
def test_evaluation_is_fixed_and_complete(data: DataModule, split: str) -> None:
    first = list(data.batches(split, 4, train=False, seed=1, epoch=1))
    assert same(first, list(data.batches(split, 4, train=False, seed=2, epoch=5)))
    index = torch.cat([batch["index"] for batch in first])
    assert torch.equal(index, torch.arange(data.size(split)))
    assert len(first) == data.num_batches(split, 4, train=False)


@pytest.mark.parametrize("train", [True, False])
def test_start_equals_skipping(data: DataModule, train: bool) -> None:
    whole = list(data.batches("train", 4, train=train, epoch=1))
    assert same(whole[2:], list(data.batches("train", 4, train=train, epoch=1, start=2)))
    assert list(data.batches("train", 4, train=train, start=10_000)) == []


@pytest.mark.parametrize("train", [True, False])
def test_two_ranks_together_see_what_one_sees(data: DataModule, train: bool) -> None:
    whole = list(data.batches("train", 4, train=train))
    ranks = [list(data.batches("train", 4, train=train, rank=rank, world_size=2)) for rank in (0, 1)]
    if train:
        assert len(ranks[0]) == len(ranks[1]) == len(whole) // 2
        whole = whole[: len(whole) // 2 * 2]
    merged = [ranks[j % 2][j // 2] for j in range(len(whole))]
    assert same(whole, merged)
    assert same(ranks[1][1:], list(data.batches("train", 4, train=train, rank=1, world_size=2, start=1)))


def test_bad_arguments(data: DataModule) -> None:
    for arguments, message in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "start": -1}, "start must not be negative, got -1"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank must be between 0 and world_size - 1 = 1, got 2"),
    ):
        with pytest.raises(InputError, match=message):
            next(iter(data.batches("train", train=True, **arguments)))
    with pytest.raises(DataError, match=r"needs 200000 training samples for one step, got \d+; use a smaller batch"):
        next(iter(data.batches("train", 100_000, train=True, world_size=2)))


def test_fingerprint_is_stable(make: Callable[[], DataModule]) -> None:
    first, second = make(), make()
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 64
    described = first.describe()
    assert described["fingerprint"] == first.fingerprint
    assert described["train"] == first.size("train") > 0


def test_empty_split_gives_nothing(image_folder: Path) -> None:
    data = ImageFolder(str(image_folder), image_size=16, num_workers=0)
    assert data.size("test") == 0
    assert list(data.batches("test", 4, train=False)) == []
