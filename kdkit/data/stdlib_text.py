"""The source code of Python's standard library: text that every machine with Python has."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdkit.data._base import Split
from kdkit.data._documents import Corpus, Document, check_shares, content_key, divide, position
from kdkit.data._text_rows import TextRows
from kdkit.errors import DataError, InputError

__all__ = ["StdlibText", "read_library"]


class StdlibText(TextRows):
    """Python's standard library as text, a document per file, split by file.

    The files are those of the running interpreter, so the fingerprint differs between Python versions. Installed
    packages and generated build settings (``_sysconfigdata*``) are never read; of files with equal content one is
    kept, so that none is in two splits.

    Args:
        max_bytes: take files (in an order given by the hash of their path) up to this many bytes; ``None`` for all.
        val_share: share of the files that validate, chosen by the hash of their path.
        test_share: share of the files that test.
        exclude: names of folders that are left out. ``encodings`` is among them because its character tables are
            copies of each other but for a few lines, ``pydoc_data`` because it is one big generated text.
        source: ``"package"`` tells the packages apart, and ``modules`` that are a single file, for teachers by source;
            ``None`` nothing.
        tokenizer: a folder, a hub name or a fast tokenizer; ``None`` trains a byte-level BPE on the training files.
        vocab_size: entries of the trained tokenizer.
        context: tokens per row.
        packing: whether files share rows.
        teacher_tokenizer: of a teacher whose tokenizer is another: a folder, a hub name or a fast tokenizer, or
            ``{"kind": "unigram" or "bpe", "vocab_size": ...}`` to train one; ``None`` where both share one.

    Raises:
        DataError: when there are too few files.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        *,
        max_bytes: int | None = None,
        val_share: float = 0.05,
        test_share: float = 0.05,
        exclude: Sequence[str] = ("test", "tests", "idlelib", "encodings", "pydoc_data"),
        source: str | None = None,
        tokenizer: Any = None,
        vocab_size: int = 4096,
        context: int = 256,
        packing: bool = True,
        teacher_tokenizer: Any = None,
    ) -> None:
        check_shares(val_share, test_share)
        if source not in (None, "package"):
            raise InputError(f"StdlibText: source must be package or null, got {source!r}")
        if max_bytes is not None and max_bytes < 1:
            raise InputError(f"StdlibText: max_bytes must be at least 1, got {max_bytes}; null takes all files")
        files = read_library(Path(sysconfig.get_paths()["stdlib"]), set(exclude))
        if max_bytes is not None:
            files = _cap(files, max_bytes)
        splits = divide(list(files), val_share, test_share, "StdlibText")
        names, texts = list(files), list(files.values())
        documents: dict[Split, list[Document]] = {
            split: [Document(texts[index], source=_package(names[index], source)) for index in indices]
            for split, indices in splits.items()
        }
        self.files: dict[Split, list[str]] = {
            split: [names[index] for index in indices] for split, indices in splits.items()
        }
        super().__init__(
            Corpus(content_key(documents), lambda: documents),
            name="stdlib",
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            context=context,
            packing=packing,
            sourced=source is not None,
            teacher_tokenizer=teacher_tokenizer,
        )


def _package(name: str, source: str | None) -> str:
    """The source of a file of the library."""
    if source is None:
        return ""
    return name.split("/")[0] if "/" in name else "modules"


def read_library(root: Path, exclude: set[str]) -> dict[str, str]:
    """Relative path -> text, by path, without what is excluded, undecodable, empty or there already."""
    exclude = exclude | {"site-packages", "dist-packages", "__pycache__"}
    files: dict[str, str] = {}
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if exclude.intersection(relative.parts[:-1]) or path.name.startswith("_sysconfigdata"):
            continue
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if not content.strip() or digest in seen:
            continue
        try:
            files[relative.as_posix()] = content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        seen.add(digest)
    if not files:
        raise DataError(f"StdlibText: {root} holds no *.py files; install Python's standard library as source")
    return files


def _cap(files: dict[str, str], max_bytes: int) -> dict[str, str]:
    chosen: set[str] = set()
    for name in sorted(files, key=lambda name: position(f"choose {name}")):
        size = len(files[name].encode())
        if size <= max_bytes:
            chosen.add(name)
            max_bytes -= size
    return {name: text for name, text in files.items() if name in chosen}
