"""Reading documents out of files and of records with fields."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.data._documents import Document
from kdkit.errors import DataError, InputError, did_you_mean

__all__ = ["Fields", "expand", "read_file"]

_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a record make a document.

    Args:
        text: field with the text to learn; not read when there is a prompt field.
        prompt: field with the prompt, or ``None``.
        completion: field with the answer to the prompt, or ``None``.
        source: field that says where a document is from, or ``None``.

    Raises:
        InputError: when only one of ``prompt`` and ``completion`` is given.
    """

    text: str = "text"
    prompt: str | None = None
    completion: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None):
            raise InputError(
                "prompt_field and completion_field go together, "
                f"got prompt_field={self.prompt!r} and completion_field={self.completion!r}"
            )

    @property
    def names(self) -> list[str]:
        """The fields that are read."""
        read = [self.text] if self.prompt is None or self.completion is None else [self.prompt, self.completion]
        return read if self.source is None else [*read, self.source]

    def document(self, record: Mapping[str, Any], where: str) -> Document:
        """The document of one record.

        Raises:
            DataError: when a field is missing or not text; the message starts with ``where``.
        """
        values = []
        for name in self.names:
            if name not in record:
                raise DataError(f"{where} has no field {name!r}{did_you_mean(name, record)}")
            if not isinstance(record[name], str):
                raise DataError(f"{where}: field {name!r} must be text, got {type(record[name]).__name__}")
            values.append(_valid(record[name]))
        source = values.pop() if self.source is not None else ""
        return Document(values[-1], values[0] if len(values) == 2 else "", source)


def expand(paths: str | Sequence[str]) -> list[Path]:
    """The files behind paths, globs and folders (all supported files below them), sorted.

    Raises:
        DataError: when one leads nowhere or to a file of another kind.
    """
    files: set[Path] = set()
    for entry in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(entry).expanduser()
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix in _SUFFIXES]
        elif path.is_file():
            found = [path]
        else:
            found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]  # noqa: PTH207
        if not found:
            raise DataError(f"{path} does not exist, or holds no {', '.join(_SUFFIXES)} file")
        files.update(found)
    for path in sorted(files):
        if path.suffix not in _SUFFIXES:
            raise DataError(f"{path} must end in one of {', '.join(_SUFFIXES)}, got {path.suffix!r}; convert it first")
    return sorted(files)


def read_file(path: Path, fields: Fields, separator: str | None = None) -> list[Document]:
    """The documents of one file that are not empty.

    Args:
        path: a ``.txt`` file (one document, or several with ``separator``), a ``.jsonl`` or a ``.parquet`` file.
        fields: of the records.
        separator: what stands between the documents of a ``.txt`` file.

    Raises:
        DataError: when the file cannot be read or a record lacks a field.
    """
    try:
        if path.suffix == ".txt":
            text = path.read_text(encoding="utf-8")
            documents: Iterable[Document] = map(Document, text.split(separator) if separator else [text])
        elif path.suffix == ".jsonl":
            documents = list(_jsonl(path, fields))
        else:
            documents = list(_parquet(path, fields))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    return [document for document in documents if document.text.strip()]


def _jsonl(path: Path, fields: Fields) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON ({error})") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number} must be a JSON object, got {type(record).__name__}")
            yield fields.document(record, f"{path}, line {number}")


def _parquet(path: Path, fields: Fields) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in fields.names:
                if name not in names:
                    raise DataError(f"{path} has no field {name!r}{did_you_mean(name, names)}")
            number = 0
            for batch in file.iter_batches(columns=fields.names):
                for record in batch.to_pylist():
                    number += 1
                    yield fields.document(record, f"{path}, row {number}")
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file ({error})") from None


def _valid(text: str) -> str:
    """The text without lone surrogates, which JSON can write and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
