"""Which document falls into which split."""

from __future__ import annotations

import pytest

from kdkit.data._documents import Document, check_shares, content_key, divide
from kdkit.errors import DataError, InputError


def test_shares_are_about_right_and_nothing_is_lost() -> None:
    keys = [f"file {i}" for i in range(5000)]
    splits = divide(keys, 0.1, 0.2, "x")
    assert sorted(index for indices in splits.values() for index in indices) == list(range(5000))
    assert 450 < len(splits["val"]) < 550
    assert 920 < len(splits["test"]) < 1080
    assert splits["train"] == sorted(splits["train"])


def test_an_item_stays_where_it_is_when_others_come() -> None:
    few, many = [f"file {i}" for i in range(500)], [f"file {i}" for i in range(1000)]
    before = divide(few, 0.1, 0.1, "x")
    after = divide(many, 0.1, 0.1, "x")
    for split, indices in before.items():
        assert set(indices) <= set(after[split])


def test_equal_keys_stay_together() -> None:
    keys = [f"file {i % 50}" for i in range(500)]
    places: dict[str, set[str]] = {}
    for split, indices in divide(keys, 0.2, 0.2, "x").items():
        for index in indices:
            places.setdefault(keys[index], set()).add(split)
    assert all(len(found) == 1 for found in places.values())


def test_every_wanted_split_gets_something() -> None:
    splits = divide(["a", "b", "c"], 0.001, 0.001, "x")
    assert {split: len(indices) for split, indices in splits.items()} == {"train": 1, "val": 1, "test": 1}
    assert set(divide(["a", "b"], 0, 0, "x")) == {"train"}


def test_too_few() -> None:
    with pytest.raises(DataError, match=r"x: 1 different document\(s\) cannot be divided .* val_share=0 test_share=0"):
        divide(["a", "a", "a"], 0.1, 0.1, "x")


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_shares(shares: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=f"must add up to less than 1, got {shares[0]} and {shares[1]}"):
        check_shares(*shares)


def test_content_key_sees_every_boundary() -> None:
    texts = [
        {"train": [Document("ab"), Document("c")]},
        {"train": [Document("a"), Document("bc")]},
        {"train": [Document("ab", "c")]},
        {"train": [Document("ab")], "val": [Document("c")]},
        {"train": [Document("abc")]},
    ]
    assert len({content_key(splits) for splits in texts}) == len(texts)  # type: ignore[arg-type]
