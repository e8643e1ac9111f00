"""Documents, the splits they fall into, and the corpus that a text set hands to the tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdkit.data._base import Split
from kdkit.errors import DataError, InputError

__all__ = ["Corpus", "Document", "check_shares", "content_key", "divide"]


class Document(NamedTuple):
    """A text to learn, after a prompt that is read but not learnt (empty where there is none), and where it is from."""

    text: str
    prompt: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Where documents come from.

    Attributes:
        key: SHA-256 (hex) over contents and splits.
        load: reads the documents of each split; called only when nothing under ``key`` is in the store.
    """

    key: str
    load: Callable[[], Mapping[Split, Sequence[Document]]]


def check_shares(val_share: float, test_share: float) -> None:
    """Refuse shares below 0, or that leave nothing to train on.

    Raises:
        InputError: naming both.
    """
    if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
        raise InputError(
            f"val_share and test_share must not be negative and must add up to less than 1, "
            f"got {val_share} and {test_share}"
        )


def position(text: str) -> float:
    """A number in [0, 1) that is a hash of the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:7], "big") / 2**56


def divide(keys: Sequence[str], val_share: float, test_share: float, where: str) -> dict[Split, list[int]]:
    """Split items by the hash of their keys, so that an item stays in its split when others come or go.

    Equal keys land in the same split. A split with a share above 0 gets at least one item.

    Args:
        keys: one text per item.
        val_share: share of the items that validate.
        test_share: share of the items that test.
        where: start of the error message.

    Returns:
        Ascending positions by split; splits with a share of 0 are left out.

    Raises:
        DataError: when there are too few different items.
    """
    places = {key: position(key) for key in keys}
    ordered = sorted(places, key=lambda key: places[key])
    n_test = max(test_share > 0, sum(place < test_share for place in places.values()))
    n_val = max(val_share > 0, sum(place < test_share + val_share for place in places.values()) - n_test)
    if n_test + n_val >= len(ordered):
        raise DataError(
            f"{where}: {len(ordered)} different document(s) cannot be divided into train, val and test; "
            "give more documents, or val_share=0 test_share=0"
        )
    split_of: dict[str, Split] = {}
    for rank, key in enumerate(ordered):
        split_of[key] = "test" if rank < n_test else "val" if rank < n_test + n_val else "train"
    out: dict[Split, list[int]] = {}
    for index, key in enumerate(keys):
        out.setdefault(split_of[key], []).append(index)
    return out


def content_key(splits: Mapping[Split, Sequence[Document]]) -> str:
    """SHA-256 (hex) over the documents of all splits, in order."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for document in splits[split]:
            parts = document if document.source else document[:2]
            for part in parts:
                encoded = part.encode("utf-8", "replace")
                digest.update(len(encoded).to_bytes(8, "big"))
                digest.update(encoded)
    return digest.hexdigest()
