"""Rows that hold the same text in two tokenizations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdkit.data import TextFiles
from kdkit.data._base import Batch, Split
from kdkit.data._encoding import Tokens
from kdkit.data._pairing import PairPiece, pack_pairs, pair_up, plan_pairs
from kdkit.data._tokenizer import teachers_tokenizer
from kdkit.errors import DataError, InputError

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def sizes(*groups: tuple[int, int]) -> np.ndarray:
    return np.array(groups, dtype=np.int64).reshape(-1, 2)


def test_a_document_goes_on_where_a_token_of_both_ends() -> None:
    pieces, missing = plan_pairs([sizes((1, 1), (2, 1), (1, 2), (2, 2), (1, 1))], 5, packing=True, whole=[False])
    assert pieces == [PairPiece(0, (0, 0), 1, 0, 0, 3), PairPiece(1, (0, 0), 1, 0, 2, 5)]
    assert not missing


def test_either_side_may_fill_a_row() -> None:
    for flip in (1, -1):
        counts = sizes((1, 1), (1, 3), (1, 3), (1, 1))[:, ::flip]
        pieces, _ = plan_pairs([counts], 7, packing=True, whole=[False])
        assert [(piece.first, piece.stop) for piece in pieces] == [(0, 3), (2, 4)]


def test_documents_share_rows_or_not() -> None:
    documents = [sizes((1, 1), (1, 1), (1, 1)), sizes((1, 1), (1, 2), (1, 1))]
    together, _ = plan_pairs(documents, 8, packing=True, whole=[False, False])
    assert [(piece.row, piece.columns, piece.number) for piece in together] == [(0, (0, 0), 1), (0, (3, 3), 2)]
    apart, _ = plan_pairs(documents, 8, packing=False, whole=[False, False])
    assert [(piece.row, piece.columns, piece.number) for piece in apart] == [(0, (0, 0), 1), (1, (0, 0), 1)]
    kept, _ = plan_pairs(documents, 6, packing=True, whole=[False, True])
    assert [piece.row for piece in kept] == [0, 1], "4 of the teacher's tokens are not left in the first row"


def test_what_fits_into_no_row_is_left_out_and_the_rest_goes_on() -> None:
    counts = sizes((1, 1), (1, 1), (1, 9), (1, 1), (1, 1), (1, 1))
    pieces, missing = plan_pairs([counts], 6, packing=True, whole=[False])
    assert missing == [(0, 2), (0, 3)]
    assert [(piece.first, piece.stop) for piece in pieces] == [(0, 2), (3, 6)]


def tokens(ids: list[int], num_bytes: list[int]) -> Tokens:
    return Tokens(np.array(ids), np.array(num_bytes), np.arange(len(ids)) > 0)


def test_rows() -> None:
    student = tokens([9, 1, 2, 3, 8], [0, 2, 1, 3, 0])
    teacher = tokens([7, 5, 6, 4, 6], [0, 3, 1, 2, 0])
    rows, left = pack_pairs(pair_up([student], [teacher]), 4, pad_token_ids=(0, 90))
    assert rows["input_ids"].tolist() == [[9, 1, 2, 3], [3, 8, 0, 0]]
    assert rows["teacher_input_ids"].tolist() == [[7, 5, 6, 4], [6, 4, 6, 90]]
    assert rows["groups"].tolist() == [[0, 1, 1, 2], [0, 1, 0, 0]]
    assert rows["teacher_groups"].tolist() == [[0, 1, 2, 2], [0, 0, 1, 0]]
    assert rows["num_bytes"].tolist() == [[0, 2, 1, 3], [0, 0, 0, 0]]
    assert rows["learn"].int().tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    assert rows["document_ids"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert rows["teacher_document_ids"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert left == 0


def test_bytes_that_are_in_no_row_are_counted() -> None:
    student = tokens([9, 1, 2, 8], [0, 2, 5, 0])
    teacher = tokens([7, 5, 6, 6, 6, 6, 6, 3], [0, 2, 1, 1, 1, 1, 1, 0])
    rows, left = pack_pairs(pair_up([student], [teacher]), 4, pad_token_ids=(0, 0))
    assert left == 5
    assert int(rows["num_bytes"].sum()) == 2
    mute = Tokens(np.array([9, 8]), np.array([0, 0]), np.array([False, True]))
    _, left = pack_pairs(pair_up([student], [mute]), 4, pad_token_ids=(0, 0))
    assert left == 7, "a text that the teacher can not write"


# ---- a data set ----------------------------------------------------------------------------------------------------


def make(path: Path, **options: Any) -> TextFiles:
    kind = {"kind": "unigram", "vocab_size": 320}
    settings = {"vocab_size": 300, "context": 24, "teacher_tokenizer": kind, "val_share": 0.2, "test_share": 0.2}
    return TextFiles(str(path), **settings | options)


def everything(data: Any, split: Split) -> Batch:
    return next(iter(data.batches(split, 100_000, train=False)))


def pieces(ids: Tensor, documents: Tensor, tokenizer: Any) -> list[str]:
    """What stands in the pieces of a row, as text."""
    numbers = range(1, int(documents.max()) + 1)
    return [tokenizer.decode(ids[documents == n].tolist(), skip_special_tokens=True) for n in numbers]


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_holds_the_same_text_for_both(jsonl: Path, packing: bool) -> None:
    data = make(jsonl, packing=packing)
    student, teacher = data.spec.tokenizer, data.spec.teacher.tokenizer  # type: ignore[union-attr]
    for split in SPLITS:
        batch = everything(data, split)
        for row in range(len(batch["input_ids"])):
            own = pieces(batch["input_ids"][row], batch["document_ids"][row], student)
            assert own == pieces(batch["teacher_input_ids"][row], batch["teacher_document_ids"][row], teacher)
        for groups, others in zip(batch["groups"], batch["teacher_groups"], strict=True):
            assert groups.unique().tolist() == others.unique().tolist() == list(range(int(groups.max()) + 1))
            assert bool((groups[groups > 0].diff() >= 0).all())
        assert bool(((batch["groups"] > 0) <= (batch["labels"] != -100)).all())
    assert data.describe()["left_out_bytes"] == {"train": 0, "val": 0, "test": 0}


def test_every_byte_is_a_target_once_as_without_a_teacher(jsonl: Path) -> None:
    both, alone = make(jsonl), make(jsonl, teacher_tokenizer=None)
    for split in SPLITS:
        sums = [int(everything(data, split)["num_bytes"].sum()) for data in (both, alone, both.for_teacher())]
        assert sums[0] == sums[1] == sums[2] > 0
    assert alone.for_teacher() is alone
    assert len({data.fingerprint for data in (both, alone, both.for_teacher())}) == 3
    assert "groups" not in everything(alone, "val")


def test_groups_are_the_same_bytes_by_the_vocabularies(jsonl: Path) -> None:
    data = make(jsonl)
    spec = data.spec.teacher
    assert spec is not None
    batch = everything(data, "val")
    for row in range(len(batch["groups"])):
        for group in range(1, int(batch["groups"][row].max()) + 1):
            own = batch["input_ids"][row][batch["groups"][row] == group].tolist()
            other = batch["teacher_input_ids"][row][batch["teacher_groups"][row] == group].tolist()
            assert data.spec.tokenizer.decode(own) == spec.tokenizer.decode(other)


def test_rows_come_back_from_the_store(jsonl: Path) -> None:
    first, second = make(jsonl), make(jsonl)
    assert first.fingerprint == second.fingerprint
    for split in SPLITS:
        old, new = everything(first, split), everything(second, split)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert make(jsonl, teacher_tokenizer={"kind": "bpe", "vocab_size": 270}).fingerprint != first.fingerprint


def test_one_tokenizer_given_twice_is_one(jsonl: Path) -> None:
    alone = make(jsonl, teacher_tokenizer=None)
    same = make(jsonl, teacher_tokenizer={"kind": "bpe", "vocab_size": 300})
    assert same.spec.teacher is None
    assert same.fingerprint == alone.fingerprint


def test_wrong_tokenizers_are_refused(jsonl: Path) -> None:
    with pytest.raises(InputError, match=r"kind must be one of bpe, unigram, got 'unigrm'; did you mean 'unigram'"):
        make(jsonl, teacher_tokenizer={"kind": "unigrm"})
    with pytest.raises(InputError, match=r"teacher_tokenizer has no setting 'size'; did you mean 'vocab_size'"):
        make(jsonl, teacher_tokenizer={"size": 300})
    with pytest.raises(InputError, match=r"vocab_size must be at least 300 \(256 bytes, .+, 41 pieces\), got 100"):
        make(jsonl, teacher_tokenizer={"vocab_size": 100})
    with pytest.raises(InputError, match=r"source and teacher_tokenizer do not go together; leave one of the two out"):
        make(jsonl, source="file")
    with pytest.raises(DataError, match=r"teacher_tokenizer: tokenizer './nowhere' is no folder; correct the path"):
        make(jsonl, teacher_tokenizer="./nowhere")


def test_the_trained_unigram_writes_any_text(jsonl: Path) -> None:
    tokenizer = make(jsonl).spec.teacher.tokenizer  # type: ignore[union-attr]
    assert len(tokenizer) <= 320
    for text in ("the quick\n\tbrown  fox", "größe 漢字", "never seen: \U0001f600 ∀x Ж"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.convert_tokens_to_ids("<|unk|>") not in ids


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (5, "teacher_tokenizer must be a folder, a hub name or"),
        ({"kind": "foo"}, "teacher_tokenizer.kind must be one of"),
        ({"kind": "unigram", "vocab_size": "abc"}, "teacher_tokenizer.vocab_size must be a whole number, got 'abc'"),
        ({"kind": "unigram", "vocab_size": 2}, "teacher_tokenizer.vocab_size must be at least"),
        ({"size": 2}, "teacher_tokenizer has no setting 'size'"),
        ("/nowhere/at/all", "teacher_tokenizer: tokenizer '/nowhere/at/all' is no folder; correct the path"),
    ],
)
def test_a_wrong_tokenizer_of_the_teacher(setting: object, message: str) -> None:
    with pytest.raises((InputError, DataError), match=re.escape(message)):
        teachers_tokenizer(setting, ["text"], "key", 512, 64)
