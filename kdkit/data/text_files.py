"""A user's own text: .txt, .jsonl and .parquet files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit._files import sha256_file, sha256_json
from kdkit.data._base import Split
from kdkit.data._documents import Corpus, Document, check_shares, divide
from kdkit.data._records import Fields, expand, read_file
from kdkit.data._text_rows import TextRows
from kdkit.errors import DataError, InputError, did_you_mean

__all__ = ["TextFiles", "split_documents"]

_SPLITS = ("train", "val", "test")
_SOURCES = ("file", "folder", "field")


class TextFiles(TextRows):
    """Documents out of local files.

    A ``.txt`` file is one document, or several with ``separator``; a line of a ``.jsonl`` and a row of a ``.parquet``
    file is one document each. Documents without text are left out.

    Args:
        paths: a path, a glob, a folder, or a list of them; or a mapping from ``train``, ``val``, ``test`` to these.
            Splits that are not named are drawn from ``train`` by the hash of each document, so that equal documents
            stay together.
        val_share: share of the training documents that validate when ``paths`` names no ``val``; 0 for none.
        test_share: likewise for ``test``.
        text_field: field of a record that holds the text.
        prompt_field: field with a prompt, which is read but not learnt; goes with ``completion_field``.
        completion_field: field with the answer to the prompt; replaces ``text_field``.
        separator: what stands between the documents of a ``.txt`` file, such as ``"\\n\\n"``; ``None`` for no split.
        source: what tells the sources of documents apart, for teachers by source: ``"file"`` (name without suffix),
            ``"folder"`` (name of the folder that the file lies in), ``"field"`` (of the records) or ``None``, nothing.
        source_field: that field.
        tokenizer: a folder, a hub name or a fast tokenizer; ``None`` trains a byte-level BPE on the training split.
        vocab_size: entries of the trained tokenizer.
        context: tokens per row.
        packing: whether documents share rows.
        teacher_tokenizer: of a teacher whose tokenizer is another: a folder, a hub name or a fast tokenizer, or
            ``{"kind": "unigram" or "bpe", "vocab_size": ...}`` to train one; ``None`` where both share one.

    Raises:
        DataError: when files or fields are missing, or there are too few documents.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        paths: str | Sequence[str] | Mapping[str, str | Sequence[str]],
        *,
        val_share: float = 0.05,
        test_share: float = 0.05,
        text_field: str = "text",
        prompt_field: str | None = None,
        completion_field: str | None = None,
        separator: str | None = None,
        source: str | None = None,
        source_field: str = "source",
        tokenizer: Any = None,
        vocab_size: int = 4096,
        context: int = 256,
        packing: bool = True,
        teacher_tokenizer: Any = None,
    ) -> None:
        check_shares(val_share, test_share)
        if source not in (None, *_SOURCES):
            hint = did_you_mean(str(source), _SOURCES)
            raise InputError(f"TextFiles: source must be file, folder, field or null, got {source!r}{hint}")
        own = source_field if source == "field" else None
        fields = Fields(text_field, prompt_field, completion_field, own)
        files = _files(paths)

        def load() -> dict[Split, list[Document]]:
            read = {
                split: [d for path in found for d in _sourced(read_file(path, fields, separator), path, source)]
                for split, found in files
            }
            return split_documents(read, val_share, test_share, "TextFiles")

        settings: list[object] = [val_share, test_share, text_field, prompt_field, completion_field, separator]
        named = source in ("file", "folder")
        super().__init__(
            Corpus(_key(files, [*settings, source, own] if source else settings, named=named), load),
            name="text_files",
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            context=context,
            packing=packing,
            sourced=source is not None,
            teacher_tokenizer=teacher_tokenizer,
        )


def _sourced(documents: list[Document], path: Path, source: str | None) -> list[Document]:
    """Documents of one file that say where they are from."""
    if source == "field" and path.suffix == ".txt":
        raise InputError(f"TextFiles: source=field needs records, and {path} is plain text; set source=file or folder")
    names = {"file": path.stem, "folder": path.resolve().parent.name}
    if source not in names:
        return documents
    return [document._replace(source=names[source]) for document in documents]


def split_documents(
    read: Mapping[Split, list[Document]], val_share: float, test_share: float, where: str
) -> dict[Split, list[Document]]:
    """The documents as read, with a missing ``val`` or ``test`` drawn from ``train`` by the documents' hashes.

    Raises:
        DataError: when a split has no document, or ``train`` too few to divide.
    """
    for split, documents in read.items():
        if not documents:
            raise DataError(f"{where}: the {split} split holds no document with text in it")
    out = dict(read)
    shares = {"val": 0.0 if "val" in read else val_share, "test": 0.0 if "test" in read else test_share}
    train = read["train"]
    keys = [json.dumps(document[:2]) for document in train]
    for split, indices in divide(keys, shares["val"], shares["test"], where).items():
        out[split] = [train[index] for index in indices]
    return out


def _files(paths: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> list[tuple[Split, list[Path]]]:
    by_split: dict[Any, Any] = dict(paths) if isinstance(paths, Mapping) else {"train": paths}
    for split in by_split:
        if split not in _SPLITS:
            raise InputError(f"TextFiles: paths has an unknown split {split!r}{did_you_mean(str(split), _SPLITS)}")
    if "train" not in by_split:
        raise InputError(f"TextFiles: paths must name train, got {', '.join(by_split) or 'nothing'}")
    return [(split, expand(entry)) for split, entry in by_split.items()]


def _key(files: Sequence[tuple[Split, Sequence[Path]]], settings: Sequence[object], *, named: bool = False) -> str:
    """SHA-256 over the bytes of all files by split, and how they are read; names count where they are sources."""
    shown: list[object] = [settings]
    for split, paths in sorted(files):
        for path in paths:
            names = [path.stem, path.resolve().parent.name] if named else []
            shown.append([split, path.suffix, sha256_file(path), *names])
    return sha256_json(shown)
