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
from kdkit.data._store import keep, store
from kdkit.data._tokenizer import given_tokenizer, tokenizer_key, trained_tokenizer
from kdkit.errors import DataError, InputError
from kdkit.outputs import IGNORE_INDEX

__all__ = ["TextRows", "kept_rows"]

_FORMAT = "rows 1"
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
    ) -> None:
        if context < 2:
            raise InputError(f"{name}: context must be at least 2 tokens, got {context}")
        self.name = name
        documents = functools.cache(lambda: _checked(name, corpus.load()))
        if tokenizer is None:
            tokenizer = trained_tokenizer(_training_texts(documents), corpus.key, vocab_size, context)
        else:
            tokenizer = given_tokenizer(tokenizer)
        spec = TextSpec(
            vocab_size=max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1),
            context=context,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            tokenizer=tokenizer,
        )
        shown = [_FORMAT, corpus.key, tokenizer_key(tokenizer), context, packing]
        self._fingerprint = sha256_json([*shown, "sources"] if sourced else shown)

        def make() -> dict[Split, dict[str, Tensor]]:
            encoder, pad = Encoder(tokenizer), tokenizer.pad_token_id
            names = _source_names(documents()) if sourced else ()
            rows: dict[Any, dict[str, Tensor]] = {}
            for split, texts in documents().items():
                own = [names.index(document.source) for document in texts] if sourced else None
                rows[split] = pack(encoder(texts), context, pad_token_id=pad, packing=packing, sources=own)
            if sourced:
                rows[_NAMES] = {"utf8": torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)}
            return rows

        rows: dict[Any, dict[str, Tensor]] = dict(kept_rows(store("text", self._fingerprint), make))
        names = json.loads(bytes(rows.pop(_NAMES)["utf8"].tolist())) if sourced else []
        self.spec = replace(spec, sources=tuple(names))
        self._splits = {split: Resident(tensors) for split, tensors in rows.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts, splits, tokenizer, row length and packing."""
        return self._fingerprint

    def _finish(self, batch: Batch, random: torch.Generator | None) -> Batch:
        input_ids = batch["input_ids"].long()
        document_ids = batch["document_ids"].long()
        return {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(~batch["learn"], IGNORE_INDEX),
            "document_ids": document_ids,
            "position_ids": positions(document_ids),
            "num_bytes": batch["num_bytes"].long(),
            "index": batch["index"],
            **({"source": batch["source"].long()} if "source" in batch else {}),
        }


_Documents = Mapping[Split, Sequence[Document]]


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
    out: dict[Split, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        split, name = key.split(".")
        out.setdefault(split, {})[name] = tensor  # type: ignore[arg-type]
    return out
