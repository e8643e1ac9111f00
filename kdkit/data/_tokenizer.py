"""The tokenizers of a text set: those that are given, and those trained on the training split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kdkit._files import installed_folder, sha256_json
from kdkit.data._store import keep, store
from kdkit.errors import DataError, InputError, did_you_mean

__all__ = ["given_tokenizer", "joining", "teachers_tokenizer", "tokenizer_key", "trained_tokenizer"]

PAD, EOS, UNK = "<|pad|>", "<|eos|>", "<|unk|>"
KINDS = {"bpe": "byte-level bpe 1", "unigram": "unigram with metaspace 1"}
"""Tokenizers that are trained here, and the format that their kept files have."""
_SMALLEST = {"bpe": 256 + 2, "unigram": 256 + 3 + 41}
_TRAIN_CHARACTERS = 100_000_000
_FILE = "tokenizer.json"
_SPACE = "\u2581"


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

        if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
            raise DataError(f"tokenizer {name!r} is no folder; correct the path, or give a hub name")
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


def teachers_tokenizer(setting: Any, texts: Iterable[str], corpus_key: str, vocab_size: int, context: int) -> Any:
    """The tokenizer of a teacher that does not share the student's.

    Args:
        setting: a folder, a hub name or a fast tokenizer; or ``{"kind": ..., "vocab_size": ...}`` for one that is
            trained on ``texts``, ``kind`` being "unigram" (in the manner of SentencePiece) or "bpe" (byte-level).
        texts: see :func:`trained_tokenizer`.
        corpus_key: likewise.
        vocab_size: for a mapping that names none.
        context: see :func:`trained_tokenizer`.

    Raises:
        DataError: see :func:`given_tokenizer`.
        InputError: for a mapping with other keys or values.
    """
    if not isinstance(setting, Mapping):
        if isinstance(setting, int | float):
            raise InputError(
                f"teacher_tokenizer must be a folder, a hub name or {{kind: unigram, vocab_size: N}}, got {setting!r}"
            )
        try:
            return given_tokenizer(setting)
        except DataError as error:
            raise DataError(f"teacher_tokenizer: {error}") from error
    for key in setting:
        if key not in ("kind", "vocab_size"):
            raise InputError(
                f"teacher_tokenizer has no setting {key!r}{did_you_mean(str(key), ('kind', 'vocab_size'))}"
            )
    size = setting.get("vocab_size", vocab_size)
    if isinstance(size, bool) or not isinstance(size, int):
        raise InputError(f"teacher_tokenizer.vocab_size must be a whole number, got {size!r}")
    try:
        return trained_tokenizer(texts, corpus_key, size, context, kind=setting.get("kind", "unigram"))
    except InputError as error:
        raise InputError(f"teacher_tokenizer.{error}") from error


def trained_tokenizer(
    texts: Iterable[str], corpus_key: str, vocab_size: int, context: int, *, kind: str = "bpe"
) -> Any:
    """A tokenizer trained on ``texts`` (their first 100 million characters), kept in the store.

    Documents begin and end with ``<|eos|>`` (it is the BOS token too, as in GPT-2); ``<|pad|>`` pads.

    Args:
        texts: the training split; read only when the store holds no such tokenizer.
        corpus_key: hash of the corpus.
        vocab_size: entries wanted, at least 258; a small corpus gives fewer.
        context: becomes ``model_max_length``.
        kind: "bpe" for a byte-level BPE; "unigram" for a unigram model that writes a space as ``▁`` and characters
            that it does not know as bytes (``<0x0A>``), as SentencePiece does.

    Raises:
        InputError: when ``vocab_size`` is too small, or ``kind`` is another one.
    """
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}{did_you_mean(str(kind), KINDS)}")
    if vocab_size < _SMALLEST[kind]:
        rest = f"{PAD}, {EOS}" if kind == "bpe" else f"{PAD}, {EOS}, {UNK}, 41 pieces"
        raise InputError(f"vocab_size must be at least {_SMALLEST[kind]} (256 bytes, {rest}), got {vocab_size}")
    from transformers import PreTrainedTokenizerFast

    key = sha256_json([KINDS[kind], corpus_key, vocab_size])
    folder = store("tokenizers", key)
    backend = _load(folder / _FILE)
    if backend is None:
        backend = (_train if kind == "bpe" else _train_unigram)(_first(texts, _TRAIN_CHARACTERS), vocab_size)
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
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_unigram(texts: Iterable[str], vocab_size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    pieces = Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")  # a space goes with the word after it
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="never", split=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [PAD, EOS, UNK]
    pieces_wanted = vocab_size - 256 - len(special)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 256,
        special_tokens=special,
        unk_token=UNK,
        show_progress=False,
    )
    backend.train_from_iterator(_usual_characters(list(texts), pieces_wanted // 2), trainer)
    state = json.loads(backend.to_str())
    lowest = min(score for _, score in state["model"]["vocab"])
    state["model"]["vocab"] += [[f"<0x{byte:02X}>", lowest - 10.0] for byte in range(256)]
    state["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(state))


def _usual_characters(texts: list[str], count: int) -> Iterator[str]:
    """The texts without all but the ``count`` most frequent characters; the others are written as bytes."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    by_rank = sorted(found, key=lambda character: (-found[character], character))
    rare = dict.fromkeys(map(ord, by_rank[count:]), "\n")
    return (text.translate(rare) for text in texts) if rare else iter(texts)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        yield text[:characters]
        characters -= len(text)
