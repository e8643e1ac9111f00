"""Base of the text sets: tokenizer, packing and their place in the store."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit._files import sha256_json
from kdkit.data._base import Batch, Split, TextSpec
from kdkit.data._documents import Corpus, Document
from kdkit.data._encoding import Encoder
from kdkit.data._in_memory import InMemory, Resident
from kdkit.data._packing import pack, positions
from kdkit.data._pairing import pack_pairs, pair_up
from kdkit.data._store import keep, store
from kdkit.data._tokenizer import given_tokenizer, teachers_tokenizer, tokenizer_key, trained_tokenizer
from kdkit.errors import DataError, InputError
from kdkit.outputs import IGNORE_INDEX

__all__ = ["TextRows", "kept_rows"]

_FORMAT, _PAIRED = "rows 1", "paired rows 1"
_FILE = "rows.safetensors"
_NAMES = "sources"


class TextRows(InMemory):
    """A corpus as rows of ``context`` tokens, held in memory and kept in the store for the next run.

    Args:
        corpus: the documents.
        name: how reports call the set.
        tokenizer: a folder, a hub name or a fast tokenizer of transformers; ``None`` trains a byte-level BPE on the
            training split.
        vocab_size: entries of the trained tokenizer; a given one brings its own.
        context: tokens per row.
        packing: whether documents share rows (they stay apart in attention by ``document_ids``); if not, each begins
            a row of its own and the rest of its last row is padding. Nothing is cut off either way.
        teacher_tokenizer: of a teacher with a tokenizer of its own, see :func:`teachers_tokenizer`; ``None`` where it
            shares the student's. A row then holds the same text in both, cut where tokens of both end, and at most
            ``context`` tokens of either; bytes that fit into no row are counted in :meth:`describe`.
        sourced: whether rows say which source each token is of; ``corpus.key`` then covers the sources.

    Raises:
        DataError: when a split has no text, or the tokenizer cannot be used.
        InputError: when an option is out of range.
    """

    spec: TextSpec
    fixed = True

    def __init__(
        self,
        corpus: Corpus,
        *,
        name: str,
        tokenizer: Any,
        vocab_size: int,
        context: int,
        packing: bool,
        sourced: bool = False,
        teacher_tokenizer: Any = None,
    ) -> None:
        if context < 2:
            raise InputError(f"{name}: context must be at least 2 tokens, got {context}")
        self.name = name
        documents = functools.cache(lambda: _checked(name, corpus.load()))
        if tokenizer is None:
            tokenizer = trained_tokenizer(_training_texts(documents), corpus.key, vocab_size, context)
        else:
            tokenizer = given_tokenizer(tokenizer)
        if sourced and teacher_tokenizer is not None:
            raise InputError(f"{name}: source and teacher_tokenizer do not go together; leave one of the two out")
        other = None
        if teacher_tokenizer is not None:
            texts = _training_texts(documents)
            other = teachers_tokenizer(teacher_tokenizer, texts, corpus.key, vocab_size, context)
            other = None if tokenizer_key(other) == tokenizer_key(tokenizer) else other
        spec = _spec(tokenizer, context, None if other is None else _spec(other, context))
        shown: list[Any] = [_FORMAT, corpus.key, tokenizer_key(tokenizer), context, packing]
        shown += ["sources"] if sourced else []
        shown += [] if other is None else [_PAIRED, tokenizer_key(other)]
        self._fingerprint = sha256_json(shown)
        folder = store("text", self._fingerprint)
        rows: dict[Any, dict[str, Tensor]]
        if other is None:
            self._teacher_rows: Callable[[], TextRows] = lambda: self
            rows = dict(kept_rows(folder, lambda: _rows(tokenizer, documents(), context, packing, sourced)))
        else:
            options: dict[str, Any] = {"vocab_size": vocab_size, "context": context, "packing": packing}
            self._teacher_rows = functools.cache(lambda: TextRows(corpus, name=name, tokenizer=other, **options))
            rows = dict(kept_rows(folder, lambda: _paired_rows((tokenizer, other), documents(), context, packing)))
        names = json.loads(bytes(rows.pop(_NAMES)["utf8"].tolist())) if sourced else []
        self.spec = replace(spec, sources=tuple(names))
        self._left_out = {split: int(tensors.pop("left_out", torch.zeros(()))) for split, tensors in rows.items()}
        self._splits = {split: Resident(tensors) for split, tensors in rows.items()}

    def for_teacher(self) -> TextRows:
        """The same documents as the teacher reads them when it is alone: rows of its own tokenizer."""
        return self._teacher_rows()

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and sizes; with two tokenizers, the bytes of each split that are in no row."""
        facts = super().describe()
        return facts if self.spec.teacher is None else {**facts, "left_out_bytes": dict(self._left_out)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts, splits, tokenizer, row length and packing."""
        return self._fingerprint

    def _finish(self, batch: Batch, random: torch.Generator | None) -> Batch:
        input_ids = batch["input_ids"].long()
        document_ids = batch["document_ids"].long()
        finished = {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(~batch["learn"], IGNORE_INDEX),
            "document_ids": document_ids,
            "position_ids": positions(document_ids),
            "num_bytes": batch["num_bytes"].long(),
            "index": batch["index"],
            **({"source": batch["source"].long()} if "source" in batch else {}),
        }
        if "groups" in batch:
            documents = batch["teacher_document_ids"].long()
            finished |= {name: batch[name].long() for name in ("groups", "teacher_input_ids", "teacher_groups")}
            finished |= {"teacher_document_ids": documents, "teacher_position_ids": positions(documents)}
        return finished


_Documents = Mapping[Split, Sequence[Document]]
_Rows = dict[Split, dict[str, Tensor]]


def _spec(tokenizer: Any, context: int, teacher: TextSpec | None = None) -> TextSpec:
    return TextSpec(
        vocab_size=max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1),
        context=context,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tokenizer=tokenizer,
        teacher=teacher,
    )


def _rows(tokenizer: Any, documents: _Documents, context: int, packing: bool, sourced: bool) -> _Rows:
    encoder, pad = Encoder(tokenizer), tokenizer.pad_token_id
    names = _source_names(documents) if sourced else ()
    rows: dict[Any, dict[str, Tensor]] = {}
    for split, texts in documents.items():
        own = [names.index(document.source) for document in texts] if sourced else None
        rows[split] = pack(encoder(texts), context, pad_token_id=pad, packing=packing, sources=own)
    if sourced:
        rows[_NAMES] = {"utf8": torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)}
    return rows


def _paired_rows(tokenizers: tuple[Any, Any], documents: _Documents, context: int, packing: bool) -> _Rows:
    encoders, pads = [Encoder(tokenizer) for tokenizer in tokenizers], tuple(each.pad_token_id for each in tokenizers)
    rows: _Rows = {}
    for split, texts in documents.items():
        pairs = pair_up(*(encoder(texts) for encoder in encoders))
        tensors, left = pack_pairs(pairs, context, pad_token_ids=pads, packing=packing)  # type: ignore[arg-type]
        rows[split] = {**tensors, "left_out": torch.tensor(left)}
    return rows


def _checked(name: str, documents: _Documents) -> _Documents:
    for split, texts in documents.items():
        if not any(document.text for document in texts):
            raise DataError(f"{name}: the {split} split holds no text")
    return documents


def _source_names(documents: _Documents) -> list[str]:
    """Names of all sources, sorted."""
    return sorted({document.source for texts in documents.values() for document in texts})


def _training_texts(documents: Callable[[], _Documents]) -> Iterator[str]:
    for document in documents()["train"]:
        if document.prompt:
            yield document.prompt
        yield document.text


def kept_rows(folder: Path, make: Callable[[], dict[Split, dict[str, Tensor]]]) -> dict[Split, dict[str, Tensor]]:
    """Rows by split from the store; made and put there when they are missing or the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    flat: dict[str, Tensor] | None = None
    if (folder / _FILE).is_file():
        try:
            flat = load_file(folder / _FILE)
        except (SafetensorError, OSError):
            flat = None
    if flat is None:
        rows = make()
        flat = {f"{split}.{name}": tensor for split, tensors in rows.items() for name, tensor in tensors.items()}
        keep(folder, lambda temporary: save_file(flat, temporary / _FILE))
        return rows
    out: _Rows = {}
    for key, tensor in flat.items():
        split, name = key.split(".")
        out.setdefault(split, {})[name] = tensor  # type: ignore[arg-type]
    return out
