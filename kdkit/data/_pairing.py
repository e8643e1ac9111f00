"""Documents in two tokenizations into rows that hold the same text for both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdkit.data._alignment import align_tokens
from kdkit.data._encoding import Tokens
from kdkit.errors import InputError

__all__ = ["Pair", "PairPiece", "pack_pairs", "pair_up", "plan_pairs"]


@dataclass(slots=True)
class Pair:
    """One document as tokens of both, in groups that cover the same bytes.

    Attributes:
        sides: tokens of the student, tokens of the teacher.
        sizes: int64 ``[G, 2]``, tokens per group on either side, at least 1 each.
        learn: bool ``[G]``, whether all tokens of a group are targets on both sides.
        num_bytes: int64 ``[G]``, bytes of the text per group.
    """

    sides: tuple[Tokens, Tokens]
    sizes: np.ndarray
    learn: np.ndarray
    num_bytes: np.ndarray


class PairPiece(NamedTuple):
    """Groups ``first`` to ``stop`` (not included) of document ``document``, placed in ``row`` from ``columns`` on, as
    the ``number``-th piece of that row (counted from 1)."""

    row: int
    columns: tuple[int, int]
    number: int
    document: int
    first: int
    stop: int


def pair_up(student: Iterable[Tokens], teacher: Iterable[Tokens]) -> Iterator[Pair]:
    """Documents in both tokenizations, their tokens in groups.

    Start tokens are a group, and end tokens are one; where a prompt begins the document, a start token belongs to the
    first group of the prompt. A document that one side can not write in tokens has no groups.
    """
    for sides in zip(student, teacher, strict=True):
        lead = 0 if sides[0].whole else 1
        try:
            inner = align_tokens(*(side.num_bytes[lead:-1] for side in sides))
        except InputError:
            inner = (np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))
        if any(not len(groups) or groups[-1] == 0 for groups in inner):
            nothing = np.zeros(0, dtype=np.int64)
            yield Pair(sides, nothing.reshape(0, 2), nothing.astype(bool), nothing)
            continue
        last = int(inner[0][-1]) + lead
        groups = [np.concatenate([np.zeros(lead, np.int64), each + (lead - 1), [last]]) for each in inner]
        counts = [np.bincount(each, minlength=last + 1) for each in groups]
        learnt = [np.bincount(each, side.learn, last + 1) for each, side in zip(groups, sides)]
        sizes = np.bincount(groups[0], sides[0].num_bytes, last + 1).astype(np.int64)
        yield Pair(sides, np.stack(counts, axis=1), (counts[0] == learnt[0]) & (counts[1] == learnt[1]), sizes)


def plan_pairs(
    sizes: Sequence[np.ndarray], context: int, *, packing: bool, whole: Sequence[bool]
) -> tuple[list[PairPiece], list[tuple[int, int]]]:
    """Where every group goes: documents in order, cut only where a token ends on both sides.

    A document that does not fit goes on in the next row, where its last group is repeated as context. A group that
    does not fit into a row together with the one before it is no target of any row.

    Args:
        sizes: ``[G, 2]`` per document.
        context: tokens per row, of either side.
        packing: whether documents share rows.
        whole: documents that begin a new row if they fit into one but not into what is left of the current one.

    Returns:
        The pieces, and ``(document, group)`` of what was left out.
    """
    pieces: list[PairPiece] = []
    missing: list[tuple[int, int]] = []
    row, number, used = 0, 0, np.zeros(2, dtype=np.int64)
    for document, counts in enumerate(sizes):
        ends = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(counts, axis=0)])
        length = ends[-1]
        crowded = bool((used + length > context).any()) and bool((length <= context).all())
        if used.any() and (not packing or (whole[document] and crowded)):
            row, number, used = row + 1, 0, np.zeros(2, dtype=np.int64)
        first = 0
        while first < len(counts) - 1:
            room = ends[first] + context - used
            stop = int(min(np.searchsorted(ends[:, side], room[side], side="right") for side in (0, 1))) - 1
            if stop - first >= 2:
                number += 1
                pieces.append(PairPiece(row, (int(used[0]), int(used[1])), number, document, first, stop))
                used = used + ends[stop] - ends[first]
                first = stop - 1
            elif used.any():
                row, number, used = row + 1, 0, np.zeros(2, dtype=np.int64)
            else:
                first += 1
                missing.append((document, first))
    return pieces, missing


def pack_pairs(
    pairs: Iterable[Pair], context: int, *, pad_token_ids: tuple[int, int], packing: bool = True
) -> tuple[dict[str, Tensor], int]:
    """Rows of ``context`` tokens of both tokenizations, and the bytes of text that are in no row.

    Besides what :func:`~kdkit.data._packing.pack` gives (``input_ids``, ``document_ids``, ``num_bytes``, ``learn``),
    there are ``groups`` int32 ``[N, context]``, and ``teacher_input_ids``, ``teacher_document_ids`` and
    ``teacher_groups`` ``[N, T]`` with ``T`` the longest row of the teacher. Groups count from 1 in each row; a token
    that is nobody's target, or only one network's, is in group 0.
    """
    pairs = list(pairs)
    whole = [pair.sides[0].whole for pair in pairs]
    pieces, missing = plan_pairs([pair.sizes for pair in pairs], context, packing=packing, whole=whole)
    rows = pieces[-1].row + 1 if pieces else 0
    out = [_Rows.empty(rows, context, pad) for pad in pad_token_ids]
    ends = [np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(pair.sizes, axis=0)]) for pair in pairs]
    counted = np.zeros(rows, dtype=np.int64)
    for piece in pieces:
        pair = pairs[piece.document]
        learn = pair.learn[piece.first : piece.stop].copy()
        learn[0] = False  # context
        numbers = np.where(learn, np.cumsum(learn) + counted[piece.row], 0)
        counted[piece.row] += int(learn.sum())
        for side in (0, 1):
            out[side].put(pair, side, piece, ends[piece.document][:, side], numbers)
    left = sum(int(pairs[document].num_bytes[group]) for document, group in missing)
    left += sum(int(pair.sides[0].num_bytes.sum()) for pair in pairs if not len(pair.sizes))
    student, teacher = (rows.tensors() for rows in out)
    width = max(2, int(out[1].document_ids.any(axis=0).sum()))
    names = ("input_ids", "document_ids", "groups")
    return {**student, **{f"teacher_{name}": teacher[name][:, :width].contiguous() for name in names}}, left


@dataclass(slots=True)
class _Rows:
    """Arrays ``[N, context]`` of one side."""

    input_ids: np.ndarray
    document_ids: np.ndarray
    num_bytes: np.ndarray
    learn: np.ndarray
    groups: np.ndarray

    @classmethod
    def empty(cls, rows: int, context: int, pad_token_id: int) -> _Rows:
        """Padding alone."""
        shape = (rows, context)
        blank = [np.zeros(shape, dtype=np.int32) for _ in range(3)]
        return cls(np.full(shape, pad_token_id, dtype=np.int32), blank[0], blank[1], np.zeros(shape, bool), blank[2])

    def put(self, pair: Pair, side: int, piece: PairPiece, ends: np.ndarray, numbers: np.ndarray) -> None:
        """Write the tokens of a piece; ``ends`` ``[G + 1]`` are those of the document's groups on this side."""
        tokens, start, stop = pair.sides[side], int(ends[piece.first]), int(ends[piece.stop])
        column = piece.columns[side]
        here = (piece.row, slice(column, column + stop - start))
        self.input_ids[here] = tokens.ids[start:stop]
        self.document_ids[here] = piece.number
        self.num_bytes[here] = tokens.num_bytes[start:stop]
        self.learn[here] = tokens.learn[start:stop]
        self.groups[here] = np.repeat(numbers, pair.sizes[piece.first : piece.stop, side])
        if piece.first > 0:  # repeated as context
            context = (piece.row, slice(column, column + int(pair.sizes[piece.first, side])))
            self.num_bytes[context], self.learn[context] = 0, False

    def tensors(self) -> dict[str, Tensor]:
        """As they are kept."""
        names = ("input_ids", "document_ids", "num_bytes", "learn", "groups")
        return {name: torch.from_numpy(getattr(self, name)) for name in names}
