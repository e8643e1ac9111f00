"""Documents of any length into rows of one length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdkit.data._encoding import Tokens

__all__ = ["Piece", "pack", "plan", "positions"]


class Piece(NamedTuple):
    """``length`` tokens of document ``document`` from ``first`` on, placed in ``row`` from ``column`` on as the
    ``number``-th piece of that row (counted from 1)."""

    row: int
    column: int
    number: int
    document: int
    first: int
    length: int


def plan(lengths: Sequence[int], context: int, *, packing: bool, whole: Sequence[bool]) -> list[Piece]:
    """Where every token goes: documents in order, one after the other.

    A document that does not fit goes on in the next row, where its last token is repeated: as context for the next
    one, not as a target, so that every token but the first of a document is a target exactly once.

    Args:
        lengths: tokens per document, at least 2 each.
        context: tokens per row, at least 2.
        packing: whether documents share rows; if not, each begins a row of its own.
        whole: documents that begin a new row if they fit into one but not into what is left of the current one.
    """
    pieces: list[Piece] = []
    row, column, number = 0, 0, 0
    for document, length in enumerate(lengths):
        first = 0
        if column and (not packing or (whole[document] and column + length > context >= length)):
            row, column, number = row + 1, 0, 0
        while first < length - 1:
            if context - column < 2:
                row, column, number = row + 1, 0, 0
            take = min(context - column, length - first)
            number += 1
            pieces.append(Piece(row, column, number, document, first, take))
            column += take
            first += take - 1
    return pieces


def pack(
    documents: Iterable[Tokens],
    context: int,
    *,
    pad_token_id: int,
    packing: bool = True,
    sources: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Rows of ``context`` tokens: ``input_ids``, ``document_ids``, ``num_bytes`` int32 and ``learn`` bool, all
    ``[N, context]``.

    ``document_ids`` count the documents of a row from 1; padding is 0. ``learn`` marks the targets. The sum of
    ``num_bytes`` over the targets is that of the texts. ``sources``, a number per document, adds ``source`` int32, -1
    for padding. See :func:`plan` for what goes where.
    """
    documents = list(documents)
    lengths = [len(document.ids) for document in documents]
    pieces = plan(lengths, context, packing=packing, whole=[document.whole for document in documents])
    shape = (pieces[-1].row + 1 if pieces else 0, context)
    input_ids = np.full(shape, pad_token_id, dtype=np.int32)
    document_ids, num_bytes = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    learn = np.zeros(shape, dtype=bool)
    source = np.full(shape if sources is not None else 0, -1, dtype=np.int32)
    for row, column, number, index, first, length in pieces:
        document, here, there = documents[index], slice(column, column + length), slice(first, first + length)
        input_ids[row, here] = document.ids[there]
        document_ids[row, here] = number
        num_bytes[row, here] = document.num_bytes[there]
        learn[row, here] = document.learn[there]
        if sources is not None:
            source[row, here] = sources[index]
        if first > 0:
            num_bytes[row, column], learn[row, column] = 0, False
    arrays = {"input_ids": input_ids, "document_ids": document_ids, "num_bytes": num_bytes, "learn": learn}
    if sources is not None:
        arrays["source"] = source
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def positions(document_ids: Tensor) -> Tensor:
    """Position of each token within its document's piece: int64 ``[B, T]`` from ``document_ids`` ``[B, T]``."""
    place = torch.arange(document_ids.shape[1], device=document_ids.device).expand(document_ids.shape)
    begins = torch.zeros_like(place)
    begins[:, 1:] = torch.where(document_ids[:, 1:] != document_ids[:, :-1], place[:, 1:], 0)
    return place - begins.cummax(dim=1).values
