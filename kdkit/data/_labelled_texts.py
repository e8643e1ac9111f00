"""Base of the sets of labelled texts: tokenizer, encoding and their place in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdkit._files import sha256_json
from kdkit.data._base import LabelledTextSpec, Split
from kdkit.data._store import store
from kdkit.data._subsets import check_labels
from kdkit.data._text_rows import kept_rows
from kdkit.data._token_sequences import TokenSequences
from kdkit.data._tokenizer import given_tokenizer, joining, tokenizer_key, trained_tokenizer
from kdkit.errors import DataError, InputError

__all__ = ["Example", "LabelledTexts"]

_FORMAT = "labelled texts 1"
_CHUNK = 4096


class Example(NamedTuple):
    """A text, the number of its class (-100 for none), and the text it is paired with."""

    text: str
    label: int
    pair: str | None = None


class LabelledTexts(TokenSequences):
    """Texts, or pairs of texts, with one class each, tokenised once and kept in the store.

    A given tokenizer writes a text as it always does (``[CLS] text [SEP] pair [SEP]`` for BERT's); one that is trained
    here puts its end token before, between and behind them. What is longer than ``context`` is cut, the longer text
    of a pair first. A special token's name inside a text is text.

    Args:
        splits: the examples of ``train`` and, where there are any, ``val`` and ``test``.
        name: how reports call the set.
        class_names: one per class.
        tokenizer: a folder, a hub name or a fast tokenizer of transformers; ``None`` trains a byte-level BPE on the
            training split.
        vocab_size: entries of the trained tokenizer; a given one brings its own.
        context: tokens of the longest row.
        measure: metric that says which network is better: "accuracy", "f1" or "matthews".

    Raises:
        DataError: for a split without texts, a label that is no class, or a tokenizer that cannot be used.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        splits: Mapping[Split, Sequence[Example]],
        *,
        name: str,
        class_names: Sequence[str],
        tokenizer: Any = None,
        vocab_size: int = 4096,
        context: int = 128,
        measure: str = "accuracy",
    ) -> None:
        if context < 4:
            raise InputError(f"{name}: context must be at least 4 tokens, got {context}")
        for split, examples in splits.items():
            if not examples:
                raise DataError(f"{name}: the {split} split holds no text")
            labels = torch.tensor([example.label for example in examples])
            check_labels(labels, len(class_names), f"{name} {split}")
        content = _content_key(splits)
        if tokenizer is None:
            tokenizer = joining(trained_tokenizer(_texts(splits["train"]), content, vocab_size, context))
        else:
            tokenizer = given_tokenizer(tokenizer, needs_eos=False)
        spec = LabelledTextSpec(
            num_classes=len(class_names),
            vocab_size=max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1),
            context=context,
            pad_token_id=tokenizer.pad_token_id,
            class_names=tuple(class_names),
            measure=measure,
            tokenizer=tokenizer,
        )
        fingerprint = sha256_json([_FORMAT, content, list(class_names), tokenizer_key(tokenizer), context])

        def make() -> dict[Split, dict[str, Tensor]]:
            encode = _Encoder(tokenizer, context, name)
            return {split: encode(examples) for split, examples in splits.items()}

        rows = kept_rows(store("labelled_text", fingerprint), make)
        super().__init__(rows, name=name, spec=spec, fingerprint=fingerprint)


class _Encoder:
    """Token ids, kinds and lengths of examples, by a copy of the tokenizer that cuts and does not pad."""

    def __init__(self, tokenizer: Any, context: int, name: str) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_padding()
        self._backend.enable_truncation(context)
        self._name = name

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        tokens, types, lengths = [], [], []
        for begin in range(0, len(examples), _CHUNK):
            chunk = examples[begin : begin + _CHUNK]
            inputs = [each.text if each.pair is None else (each.text, each.pair) for each in chunk]
            for place, encoding in enumerate(self._backend.encode_batch(inputs)):
                if not encoding.ids:
                    raise DataError(f"{self._name}: text {begin + place} becomes no token; take it out of the data")
                tokens.append(torch.tensor(encoding.ids, dtype=torch.int32))
                types.append(torch.tensor(encoding.type_ids, dtype=torch.uint8))
                lengths.append(len(encoding.ids))
        labels = torch.tensor([example.label for example in examples])
        sequences = {"tokens": torch.cat(tokens), "types": torch.cat(types)}
        return {**sequences, "lengths": torch.tensor(lengths), "label": labels}


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    for example in examples:
        yield example.text
        if example.pair is not None:
            yield example.pair


def _content_key(splits: Mapping[Split, Sequence[Example]]) -> str:
    """SHA-256 (hex) over the examples of all splits, in order."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(f"{split} {len(splits[split])}\n".encode())
        for example in splits[split]:
            for part in (example.text, example.pair or "", str(example.label), str(example.pair is None)):
                encoded = part.encode("utf-8", "replace")
                digest.update(len(encoded).to_bytes(8, "big"))
                digest.update(encoded)
    return digest.hexdigest()
