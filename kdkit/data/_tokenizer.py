"""The tokenizer of a text set: one that is given, or a byte-level BPE trained on the training split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdkit._files import installed_folder, sha256_json
from kdkit.data._store import keep, store
from kdkit.errors import DataError, InputError

__all__ = ["given_tokenizer", "joining", "tokenizer_key", "trained_tokenizer"]

PAD, EOS = "<|pad|>", "<|eos|>"
_SMALLEST = 256 + 2
_TRAIN_CHARACTERS = 100_000_000
_FILE = "tokenizer.json"
_FORMAT = "byte-level bpe 1"


def given_tokenizer(tokenizer: Any, *, needs_eos: bool = True) -> Any:
    """A fast tokenizer with a padding token, and an EOS token if one is needed: of a folder, a hub name or an object.

    A tokenizer without a padding token pads with its EOS token. That is safe here: padded positions are known by
    ``document_ids == 0`` and a label of -100, or by the attention mask, never by their token id.

    Raises:
        DataError: when it cannot be loaded, is not a fast one, or has no EOS token where one is needed.
    """
    name = tokenizer if isinstance(tokenizer, str) else type(tokenizer).__name__
    if isinstance(tokenizer, (str, Path)):
        name = str(tokenizer)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(installed_folder(name) if name.startswith("package:") else name)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise DataError(f"tokenizer {name!r} cannot be loaded ({reason}); give a folder or a hub name") from None
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"tokenizer {name!r} is not a fast tokenizer; convert it to a tokenizer.json first")
    if tokenizer.eos_token_id is None and (needs_eos or tokenizer.pad_token_id is None):
        raise DataError(
            f"tokenizer {name!r} has no EOS token, which ends every document; set its eos_token and save it"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def trained_tokenizer(texts: Iterable[str], corpus_key: str, vocab_size: int, context: int) -> Any:
    """A byte-level BPE trained on ``texts`` (their first 100 million characters), kept in the store.

    Documents begin and end with ``<|eos|>`` (it is the BOS token too, as in GPT-2); ``<|pad|>`` pads.

    Args:
        texts: the training split; read only when the store holds no such tokenizer.
        corpus_key: hash of the corpus.
        vocab_size: entries wanted, at least 258; a small corpus gives fewer.
        context: becomes ``model_max_length``.

    Raises:
        InputError: when ``vocab_size`` is too small.
    """
    if vocab_size < _SMALLEST:
        raise InputError(f"vocab_size must be at least {_SMALLEST} (256 bytes, {PAD}, {EOS}), got {vocab_size}")
    from transformers import PreTrainedTokenizerFast

    key = sha256_json([_FORMAT, corpus_key, vocab_size])
    folder = store("tokenizers", key)
    backend = _load(folder / _FILE)
    if backend is None:
        backend = _train(texts, vocab_size)
        keep(folder, lambda temporary: backend.save(str(temporary / _FILE)))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def joining(tokenizer: Any) -> Any:
    """A tokenizer of :func:`trained_tokenizer` that by itself puts the end token before, between and behind texts.

    The second text of a pair and the token behind it are of kind 1, as in BERT's tokenizers."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A {EOS}",
        pair=f"{EOS} $A {EOS} $B:1 {EOS}:1",
        special_tokens=[(EOS, tokenizer.eos_token_id)],
    )
    return tokenizer


def tokenizer_key(tokenizer: Any) -> str:
    """SHA-256 (hex) over everything that decides which ids a text becomes."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    parts = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
    shown = {part: state.get(part) for part in parts}
    return hashlib.sha256(json.dumps([shown, ids], sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        return None
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # the library raises a bare Exception for a damaged file; it is made again
        return None


def _train(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(_first(texts, _TRAIN_CHARACTERS), trainer)
    return backend


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)
