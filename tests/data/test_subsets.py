"""Stratified hold-outs and few labels."""

from __future__ import annotations

import pytest
import torch

from kdkit.data._subsets import check_labels, hold_out, keep_labels
from kdkit.errors import DataError, InputError


@pytest.mark.parametrize("size", [0, 1, 7, 50, 99])
def test_hold_out_keeps_class_shares(size: int) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    kept, held = hold_out(labels, size, "val_size")
    assert len(held) == size
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(100))
    counts = torch.bincount(labels[held], minlength=3)
    assert (counts - size * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 1


def test_hold_out_is_nested_and_keyed() -> None:
    labels = torch.arange(200) % 4
    small, big = hold_out(labels, 20, "val_size")[1], hold_out(labels, 60, "val_size")[1]
    assert set(small.tolist()) < set(big.tolist())
    assert not torch.equal(small, hold_out(labels, 20, "test_size")[1])


@pytest.mark.parametrize("size", [-1, 10, 11])
def test_hold_out_range(size: int) -> None:
    with pytest.raises(InputError, match=f"val_size must be between 0 and 9, got {size}"):
        hold_out(torch.zeros(10, dtype=torch.int64), size, "val_size")


@pytest.mark.parametrize("keep", [0, 4, 10, 40])
def test_few_labels_are_balanced(keep: int) -> None:
    labels = torch.arange(200) % 4
    few = keep_labels(labels, keep, 4, seed=0)
    kept = few != -100
    assert int(kept.sum()) == keep
    assert torch.equal(few[kept], labels[kept])
    counts = torch.bincount(few[kept], minlength=4)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(few, keep_labels(labels, keep, 4, seed=0))


def test_few_labels_seed_and_small_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2] * 50)
    few = keep_labels(labels, 30, 3, seed=0)
    assert torch.bincount(few[few >= 0]).tolist() == [14, 2, 14]
    assert not torch.equal(few, keep_labels(labels, 30, 3, seed=1))


def test_few_labels_leaves_unlabelled_alone() -> None:
    labels = torch.arange(20) % 2
    labels[:10] = -100
    few = keep_labels(labels, 10, 2, seed=0)
    assert torch.equal(few, labels)


@pytest.mark.parametrize("keep", [-1, 3, 21])
def test_few_labels_range(keep: int) -> None:
    with pytest.raises(InputError, match=rf"labels must be 0, or between .* 4 and .* 20, got {keep}; null keeps all"):
        keep_labels(torch.arange(20) % 4, keep, 4, seed=0)


def test_check_labels() -> None:
    check_labels(torch.tensor([0, 2, -100]), 3, "x")
    for bad in (3, -1):
        with pytest.raises(DataError, match=rf"x train: labels must lie in \[0, 3\) .* got {bad} at position 1"):
            check_labels(torch.tensor([0, bad]), 3, "x train")
