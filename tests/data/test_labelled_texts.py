"""Labelled texts: encoding, padding batch by batch, order, the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdkit.data import LabelledTexts
from kdkit.data._labelled_texts import Example
from kdkit.errors import DataError, InputError
from kdkit.teachers.cached import sample_checks

WORDS = ("red", "green", "blue", "seven", "eight", "nine", "long", "short")


def examples(count: int, pairs: bool = False, seed: int = 0) -> list[Example]:
    texts = [" ".join(WORDS[(i * j + seed) % 8] for j in range(1, 2 + i % 6)) for i in range(count)]
    return [Example(text, i % 2, text[::-1] if pairs else None) for i, text in enumerate(texts)]


def make(pairs: bool = False, **options: Any) -> LabelledTexts:
    splits: Any = {"train": examples(40, pairs), "test": examples(10, pairs, seed=3)}
    options = {"name": "words", "class_names": ("even", "odd"), "vocab_size": 280, "context": 16} | options
    return LabelledTexts(splits, **options)


def test_a_batch_is_as_wide_as_its_longest_text() -> None:
    data = make()
    for batch in data.batches("train", 4, train=True, seed=1):
        lengths = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape == (4, int(lengths.max()))
        inside = torch.arange(int(lengths.max())) < lengths[:, None]
        assert batch["attention_mask"].equal(inside.long())
        assert bool((batch["input_ids"][~inside] == data.spec.pad_token_id).all())
        for row, index in enumerate(batch["index"].tolist()):
            text, label, _ = examples(40)[index]
            ids = batch["input_ids"][row][inside[row]]
            assert data.spec.tokenizer(text, truncation=True).input_ids == ids.tolist()
            assert int(batch["label"][row]) == label
    assert data.labels("train").tolist() == [i % 2 for i in range(40)]


def test_order_follows_seed_and_epoch_and_ranks_share_it() -> None:
    data = make()

    def order(**options: Any) -> list[int]:
        return [int(i) for batch in data.batches("train", 5, train=True, **options) for i in batch["index"]]

    assert sorted(order(seed=1)) == list(range(40)) and order(seed=1) == order(seed=1)
    assert order(seed=1) != order(seed=2) and order(seed=1) != order(seed=1, epoch=1)
    first, second = (order(seed=1, rank=rank, world_size=2) for rank in (0, 1))
    assert [*first[:5], *second[:5], *first[5:10]] == order(seed=1)[:15]
    assert order(seed=1, start=3) == order(seed=1)[15:]


def test_pairs_are_joined_and_told_apart() -> None:
    data = make(pairs=True, context=64)
    batch = next(iter(data.batches("test", 1, train=False)))
    text, _, pair = examples(10, True, seed=3)[0]
    end = data.spec.tokenizer.eos_token_id
    ids, kinds = batch["input_ids"][0], batch["token_type_ids"][0]
    ends = (ids == end).nonzero().flatten().tolist()
    assert len(ends) == 3 and ends[0] == 0 and ends[2] == len(ids) - 1
    assert data.spec.tokenizer.decode(ids[1 : ends[1]]) == text
    assert data.spec.tokenizer.decode(ids[ends[1] + 1 : -1]) == pair
    assert kinds.tolist() == [0] * (ends[1] + 1) + [1] * (len(ids) - ends[1] - 1)


def test_what_is_too_long_is_cut() -> None:
    data = make(pairs=True, context=8)
    batch = next(iter(data.batches("train", 40, train=False)))
    assert batch["input_ids"].shape[1] == 8
    assert bool(((batch["input_ids"] == data.spec.tokenizer.eos_token_id).sum(1) == 3).all())


def test_the_store_gives_the_same_rows_and_a_change_gives_others() -> None:
    first, again = make(), make()
    assert first.fingerprint == again.fingerprint
    one, other = (next(iter(data.batches("train", 40, train=False))) for data in (first, again))
    assert all(one[name].equal(other[name]) for name in one)
    changed = [make(context=15), make(class_names=("a", "b")), make(pairs=True), make(tokenizer=first.spec.tokenizer)]
    assert len({first.fingerprint, *(data.fingerprint for data in changed[:3])}) == 4
    assert changed[3].fingerprint == first.fingerprint


def test_a_given_tokenizer_writes_as_it_always_does(tmp_path: Path) -> None:
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    data = make(pairs=True, tokenizer=str(tmp_path / "bert"))
    ids = next(iter(data.batches("test", 1, train=False)))["input_ids"][0].tolist()
    assert ids[0] == 2 and ids[-1] == 3 and ids.count(3) == 2
    assert data.spec.pad_token_id == 0 and data.spec.vocab_size == 13


def test_a_cached_answer_is_found_whatever_stands_beside_a_text() -> None:
    data = make()
    alone = [sample_checks(batch) for batch in data.batches("train", 1, train=False)]
    together = sample_checks(next(iter(data.batches("train", 40, train=False))))
    assert torch.cat(alone).equal(together)
    assert len(set(together.tolist())) > 10


def test_bad_input() -> None:
    with pytest.raises(InputError, match="words: context must be at least 4 tokens, got 3"):
        make(context=3)
    with pytest.raises(DataError, match=r"words train: labels must lie in \[0, 1\)"):
        make(class_names=("one",))
    with pytest.raises(DataError, match="words: the train split holds no text"):
        LabelledTexts({"train": []}, name="words", class_names=("a", "b"))
