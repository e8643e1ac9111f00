"""scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch

from kdkit.data import Digits
from kdkit.errors import InputError


def test_split_is_stratified_disjoint_and_complete() -> None:
    data = Digits()
    assert [data.size(split) for split in ("train", "val", "test")] == [1100, 197, 500]
    parts = {split: next(iter(data.batches(split, 2000, train=False))) for split in ("train", "val", "test")}
    for part in parts.values():
        shares = torch.bincount(part["label"], minlength=10) / len(part["label"])
        assert (shares - 0.1).abs().max() < 0.015
    everything = torch.cat([part["image"].flatten(1) for part in parts.values()])
    assert everything.shape == (1797, 64)
    assert set((everything * 16).unique().tolist()) == set(range(17))


def test_the_test_split_never_changes() -> None:
    first = next(iter(Digits().batches("test", 500, train=False)))
    second = next(iter(Digits(val_size=0, labels=100, label_seed=5).batches("test", 500, train=False)))
    assert torch.equal(first["image"], second["image"])
    assert Digits(val_size=0).size("val") == 0
    assert Digits(val_size=0).size("train") == 1297


@pytest.mark.parametrize("labels", [0, 100, 105])
def test_few_labels(labels: int) -> None:
    train = next(iter(Digits(labels=labels).batches("train", 1100, train=False)))["label"]
    assert int((train >= 0).sum()) == labels
    if labels:
        counts = torch.bincount(train[train >= 0], minlength=10)
        assert counts.max() - counts.min() <= 1


def test_options_change_what_is_shown() -> None:
    data = Digits(image_size=16, augment=False)
    assert data.spec.image_size == 16
    index = next(iter(data.batches("train", 8, train=True)))
    plain = next(iter(data.batches("train", 1100, train=False)))["image"][index["index"]]
    assert torch.equal(index["image"], plain)
    options = [{}, {"image_size": 16}, {"augment": False}, {"shift": 1}, {"labels": 100}, {"val_size": 100}]
    assert len({Digits(**option).fingerprint for option in options}) == len(options)


def test_bad_options() -> None:
    with pytest.raises(InputError, match="val_size must be between 0 and 1296, got 1297"):
        Digits(val_size=1297)
    with pytest.raises(InputError, match=r"labels must be 0, or between the number of classes 10 and .* 1100, got 5"):
        Digits(labels=5)
