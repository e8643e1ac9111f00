"""Two tokenizations of one text: where they meet, and which entries of two vocabularies are the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kdkit.errors import InputError

__all__ = ["align_tokens", "match_vocabularies", "vocabulary_bytes"]

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ROLES = ("eos", "bos", "unk", "pad")
_SPACE = "\u2581"
"""What stands for a space in vocabularies in the manner of SentencePiece."""

Key = tuple[str, bytes]
"""``("bytes", ...)`` for an entry that stands for text, ``("role", b"eos")`` or ``("special", name)`` for others."""


def align_tokens(
    student_bytes: Sequence[int] | np.ndarray, teacher_bytes: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The finest groups of consecutive tokens that cover the same bytes in both tokenizations of one text.

    Groups end where a token of the one and a token of the other end after the same number of bytes. A token without
    bytes (a further byte of a character that counted for the token before, a prefix that stands for no text) goes with
    the token before it, or with the first group.

    Args:
        student_bytes: bytes of the text per token of the one, ``[n]``.
        teacher_bytes: bytes per token of the other, ``[m]``.

    Returns:
        The number of each token's group, from 1: int32 ``[n]`` and ``[m]``. 0 everywhere for a text without bytes.

    Raises:
        InputError: if the two do not cover the same number of bytes.
    """
    ends = [np.cumsum(np.asarray(sizes, dtype=np.int64)) for sizes in (student_bytes, teacher_bytes)]
    totals = [int(end[-1]) if len(end) else 0 for end in ends]
    if totals[0] != totals[1]:
        raise InputError(
            f"align_tokens: teacher_bytes must add up to the {totals[0]} bytes of student_bytes, got {totals[1]}; "
            "tokenise the same text with both"
        )
    common = np.intersect1d(ends[0], ends[1])
    common = common[common > 0]
    if not len(common):
        empty = [np.zeros(len(end), dtype=np.int32) for end in ends]
        return empty[0], empty[1]
    groups = [(np.searchsorted(common, end, side="left") + 1).astype(np.int32) for end in ends]
    return groups[0], groups[1]


def match_vocabularies(student: Any, teacher: Any) -> np.ndarray:
    """Entries of two vocabularies that stand for the same bytes, whatever each tokenizer calls them.

    Byte-level vocabularies (``Ġthe``), those in the manner of SentencePiece (``▁the``, ``<0x0A>``) and added tokens are
    compared by the bytes of the text that they stand for. Special tokens go together by what they are for (end,
    start, unknown, padding; the first of these that a token is used for), others by their name. Of several entries
    with the same bytes the one that is no byte fallback, then the one of the lowest id, is taken.

    Args:
        student: a fast tokenizer of transformers.
        teacher: another one.

    Returns:
        int64 ``[M, 2]``: ids of the student, ascending, and of the teacher; each id at most once.
    """
    ids: list[dict[Key, int]] = []
    for tokenizer in (student, teacher):
        found: dict[Key, int] = {}
        for key, index in _entries(tokenizer):
            found.setdefault(key, index)
        ids.append(found)
    pairs = sorted((index, ids[1][key]) for key, index in ids[0].items() if key in ids[1])
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def vocabulary_bytes(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of text that each entry of a vocabulary stands for; special tokens are left out."""
    return {index: key[1] for key, index in _entries(tokenizer) if key[0] == "bytes"}


def _entries(tokenizer: Any) -> Iterator[tuple[Key, int]]:
    """What every entry stands for, and its id: fallbacks for single bytes last, otherwise by id."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {entry["id"]: entry for entry in state.get("added_tokens") or []}
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    roles: dict[int, str] = {}
    for role in _ROLES:
        index = getattr(tokenizer, f"{role}_token_id", None)
        if index is not None:
            roles.setdefault(index, role)
    letters = _byte_letters()
    byte_level = letters.keys() <= dict(vocabulary).keys()
    falls_back = bool((state.get("model") or {}).get("byte_fallback"))
    late: list[tuple[Key, int]] = []
    for token, index in vocabulary:
        fallback = _FALLBACK.fullmatch(token) if falls_back else None
        if index in roles:
            yield ("role", roles[index].encode()), index
        elif index in added:
            kind = "special" if added[index]["special"] else "bytes"
            yield (kind, token.encode()), index
        elif fallback is not None:
            late.append((("bytes", bytes([int(fallback[1], 16)])), index))
        elif byte_level and letters.keys() >= set(token):
            yield ("bytes", bytes(letters[letter] for letter in token)), index
        else:
            yield ("bytes", token.replace(_SPACE, " ").encode()), index
    yield from late


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte: itself where it prints, else one from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    return {chr(byte): byte for byte in printing} | {chr(256 + number): byte for number, byte in enumerate(others)}
