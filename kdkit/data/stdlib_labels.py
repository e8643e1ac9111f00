"""Which package of Python's standard library does this piece of code come from? No download."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit.data._base import Split
from kdkit.data._documents import check_shares, position
from kdkit.data._labelled_texts import Example, LabelledTexts
from kdkit.data.stdlib_text import read_library
from kdkit.errors import DataError, InputError

__all__ = ["StdlibLabels"]

_EXCLUDED = {"test", "tests"}


class StdlibLabels(LabelledTexts):
    """Pieces of source code of Python's standard library, each labelled with the package it comes from.

    A piece is ``lines`` lines in a row of one file, blank ones left out; a word such as the package's own name may
    stand in it and give it away, as in real text. Training, validation and test never share a file: package by package,
    and in the order of the hash of their path, files test until those have their share of the pieces, then validate,
    then train. A piece whose text was there before is left out. The files are those of the running interpreter, so the
    fingerprint differs between versions of Python.

    Args:
        packages: folders of the standard library; the classes, in this order.
        lines: lines per piece.
        pieces: at most this many per package over all splits, chosen by the hash of file and place; ``None`` for all.
        val_share: share of a package's pieces that validate; at least one file.
        test_share: share that tests; likewise.
        tokenizer: a folder, a hub name or a fast tokenizer; ``None`` trains a byte-level BPE on the training split.
        vocab_size: entries of the trained tokenizer.
        context: tokens of the longest row; longer pieces are cut.

    Raises:
        DataError: when a package is not there, or has too few files.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        *,
        packages: Sequence[str] = (
            "asyncio",
            "ctypes",
            "email",
            "http",
            "importlib",
            "multiprocessing",
            "unittest",
            "urllib",
            "wsgiref",
            "xml",
        ),
        lines: int = 6,
        pieces: int | None = 1000,
        val_share: float = 0.15,
        test_share: float = 0.25,
        tokenizer: Any = None,
        vocab_size: int = 2048,
        context: int = 64,
    ) -> None:
        check_shares(val_share, test_share)
        for option, value, least in (("lines", lines, 1), ("pieces", pieces, 10)):
            if value is not None and value < least:
                raise InputError(f"StdlibLabels: {option} must be at least {least}, got {value}")
        if len(packages) < 2 or len(set(packages)) < len(packages):
            raise InputError(f"StdlibLabels: packages must be two or more different ones, got {list(packages)}")
        root = Path(sysconfig.get_paths()["stdlib"])
        shares: dict[Split, float] = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
        self.files: dict[Split, list[str]] = {split: [] for split, share in shares.items() if share > 0}
        splits: dict[Split, list[Example]] = {split: [] for split in self.files}
        seen: set[str] = set()
        for label, package in enumerate(packages):
            found = {name: _pieces(name, text, lines, seen) for name, text in _files(root, package).items()}
            for split, names in _divided(package, found, shares).items():
                self.files[split] += names
                among = sorted((piece for name in names for piece in found[name]), key=lambda piece: position(piece[0]))
                kept = among if pieces is None else among[: max(1, round(pieces * shares[split]))]
                splits[split] += [Example(text, label) for _, text in sorted(kept)]
        super().__init__(
            splits,
            name="stdlib_labels",
            class_names=packages,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            context=context,
        )


def _files(root: Path, package: str) -> dict[str, str]:
    folder = root / package
    if not (folder / "__init__.py").is_file():
        raise DataError(
            f"StdlibLabels: Python's standard library at {root} has no package {package!r}; name others with "
            "data.packages=[…]"
        )
    files = read_library(folder, _EXCLUDED)
    return {f"{package}/{name}": text for name, text in files.items()}


def _pieces(name: str, text: str, lines: int, seen: set[str]) -> list[tuple[str, str]]:
    """``("file:line", text)`` of every whole piece that was not there before."""
    full = [(number, line.rstrip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    found = []
    for begin in range(0, len(full) - lines + 1, lines):
        piece = "\n".join(line for _, line in full[begin : begin + lines])
        if piece not in seen:
            seen.add(piece)
            found.append((f"{name}:{full[begin][0]:06d}", piece))
    return found


def _divided(
    package: str, found: Mapping[str, Sequence[object]], shares: Mapping[Split, float]
) -> dict[Split, list[str]]:
    """Names of the files of each split; every split with a share gets one with a piece in it."""
    queue = sorted((name for name, pieces in found.items() if pieces), key=position)
    order: tuple[Split, ...] = ("test", "val", "train")
    wanted = [split for split in order if shares[split] > 0]
    if len(queue) < len(wanted):
        raise DataError(
            f"StdlibLabels: package {package!r} has {len(queue)} file(s) long enough for a piece and {len(wanted)} "
            "splits; name others with data.packages=[…], or lower data.lines"
        )
    total = sum(len(pieces) for pieces in found.values())
    out: dict[Split, list[str]] = {}
    for later, split in zip(range(len(wanted) - 1, -1, -1), wanted):
        taken: list[str] = []
        while len(queue) > later and (not later or sum(len(found[name]) for name in taken) < shares[split] * total):
            taken.append(queue.pop(0))
        out[split] = sorted(taken)
    return out
