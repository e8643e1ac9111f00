"""Rows of one length: nothing lost, nothing counted twice, documents kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdkit.data._encoding import Tokens
from kdkit.data._packing import pack, plan, positions

PAD = 0


def document(number: int, length: int, prompt: int = 0) -> Tokens:
    """Ids that say which document and place they come from; the start token and the last one have no bytes."""
    ids = 1000 * (number + 1) + np.arange(length, dtype=np.int32)
    num_bytes = np.ones(length, dtype=np.int32)
    num_bytes[[0, -1]] = 0
    return Tokens(ids, num_bytes, np.arange(length) >= max(1, prompt), whole=prompt > 0)


def targets(rows: dict[str, Tensor]) -> list[int]:
    """Ids that are predicted: learnt, and after another token of the same document."""
    inside = (rows["document_ids"][:, 1:] == rows["document_ids"][:, :-1]) & (rows["document_ids"][:, 1:] > 0)
    return rows["input_ids"][:, 1:][inside & rows["learn"][:, 1:]].tolist()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("context", [2, 3, 7, 16, 100])
def test_every_token_is_a_target_exactly_once(context: int, packing: bool) -> None:
    lengths = [2, 3, 16, 17, 31, 2, 2, 5, 40]
    documents = [document(number, length) for number, length in enumerate(lengths)]
    rows = pack(documents, context, pad_token_id=PAD, packing=packing)
    want = [int(token) for one in documents for token in one.ids[1:]]
    assert targets(rows) == want
    assert int(rows["num_bytes"].sum()) == sum(int(one.num_bytes.sum()) for one in documents)
    assert int(rows["num_bytes"][rows["learn"]].sum()) == int(rows["num_bytes"].sum())
    assert not rows["learn"][:, 0].any()
    padding = rows["document_ids"] == 0
    assert (rows["input_ids"][padding] == PAD).all()
    assert not rows["learn"][padding].any()


def test_ids_by_hand() -> None:
    rows = pack([document(0, 3), document(1, 6), document(2, 2)], 5, pad_token_id=PAD)
    assert rows["input_ids"].tolist() == [
        [1000, 1001, 1002, 2000, 2001],
        [2001, 2002, 2003, 2004, 2005],
        [3000, 3001, 0, 0, 0],
    ]
    assert rows["document_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert rows["num_bytes"].tolist() == [[0, 1, 0, 0, 1], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert rows["learn"].int().tolist() == [[0, 1, 1, 0, 1], [0, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert positions(rows["document_ids"]).tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]


def test_unpacked_documents_begin_their_own_rows() -> None:
    rows = pack([document(0, 3), document(1, 6), document(2, 2)], 5, pad_token_id=PAD, packing=False)
    assert rows["input_ids"][:, 0].tolist() == [1000, 2000, 2004, 3000]
    assert rows["document_ids"].max() == 1


def test_a_row_with_one_place_left_is_padded() -> None:
    assert [piece[:2] for piece in plan([4, 3], 5, packing=True, whole=[False, False])] == [(0, 0), (1, 0)]


def test_a_prompted_document_stays_whole_when_it_fits() -> None:
    documents = [document(0, 4), document(1, 6, prompt=3), document(2, 20, prompt=15)]
    pieces = plan([4, 6, 20], 8, packing=True, whole=[one.whole for one in documents])
    assert [(piece.row, piece.document) for piece in pieces] == [(0, 0), (1, 1), (1, 2), (2, 2), (3, 2), (4, 2)]
    assert targets(pack(documents, 8, pad_token_id=PAD)) == [1001, 1002, 1003, 2003, 2004, 2005, *range(3015, 3020)]


def test_no_documents() -> None:
    assert pack([], 8, pad_token_id=PAD)["input_ids"].shape == (0, 8)


def test_positions_of_random_documents() -> None:
    document_ids = torch.tensor([[1, 1, 2, 2, 2, 3, 0, 0], [1] * 8])
    assert positions(document_ids).tolist() == [[0, 1, 0, 1, 2, 0, 0, 1], list(range(8))]
