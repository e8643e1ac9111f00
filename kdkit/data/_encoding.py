"""Documents to token ids, with the UTF-8 bytes that every token stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdkit.data._documents import Document

__all__ = ["Encoder", "Tokens"]

_CHUNK = 512


@dataclass(slots=True)
class Tokens:
    """One document as tokens, start and end included.

    Attributes:
        ids: int32 ``[n]``.
        num_bytes: int32 ``[n]``, UTF-8 bytes of the text per token; 0 for special tokens.
        learn: bool ``[n]``, whether a token is a target: not in the prompt, and not the start token.
        whole: whether to keep the document in one row if it fits, so that no prompt is cut from its answer.
    """

    ids: np.ndarray
    num_bytes: np.ndarray
    learn: np.ndarray
    whole: bool = False


class Encoder:
    """Turns documents into :class:`Tokens`.

    A document reads ``start text eos``, or ``prompt text eos``. The start token (BOS, or EOS for a tokenizer without
    one) lets the first token of the text be predicted from something, so that every byte of the text is paid for.
    A prompt is such a something already; there it is only added by tokenizers that always add a BOS token. Prompt
    and text are tokenised separately, as they are in generation. A special token's name inside a text is text.

    Args:
        tokenizer: a fast tokenizer of transformers, with an EOS token.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self._eos = tokenizer.eos_token_id
        self._start = self._eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._always_starts = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self._table = _byte_table(tokenizer)

    def __call__(self, documents: Sequence[Document]) -> Iterator[Tokens]:
        """Tokens of each document, in order."""
        for begin in range(0, len(documents), _CHUNK):
            chunk = documents[begin : begin + _CHUNK]
            texts = self._encode([document.text for document in chunk])
            prompts = self._encode([document.prompt for document in chunk])
            for document, text, prompt in zip(chunk, texts, prompts):
                yield self._join(text, prompt, prompted=bool(document.prompt))

    def _join(self, text: _Piece, prompt: _Piece, prompted: bool) -> Tokens:
        head = [self._start] if self._always_starts or not len(prompt[0]) else []
        ids = np.concatenate([head, prompt[0], text[0], [self._eos]]).astype(np.int32)
        num_bytes = np.concatenate([[0] * len(head), prompt[1], text[1], [0]]).astype(np.int32)
        learn = np.arange(len(ids)) >= len(head) + len(prompt[0])
        return Tokens(ids, num_bytes, learn, prompted)

    def _encode(self, texts: list[str]) -> list[_Piece]:
        table = self._table
        if table is None:
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
            return [(np.array(e.ids, dtype=np.int32), _bytes_by_offset(t, e.offsets)) for t, e in zip(texts, encodings)]
        out: list[_Piece] = []
        for text, encoding in zip(texts, self._backend.encode_batch_fast(texts, add_special_tokens=False)):
            ids = np.array(encoding.ids, dtype=np.int32)
            num_bytes = table[ids]
            if (num_bytes < 0).any() or num_bytes.sum() != len(text.encode()):
                encoding = self._backend.encode(text, add_special_tokens=False)
                num_bytes = _bytes_by_offset(text, encoding.offsets)
            out.append((ids, num_bytes))
        return out


_Piece = tuple[np.ndarray, np.ndarray]


def _byte_table(tokenizer: Any) -> np.ndarray | None:
    """Bytes per token id, int32 ``[V]``: in a byte-level vocabulary each character of an entry is one byte.

    Entries with other characters, and special tokens, get -1: the table says nothing about them. ``None`` for a
    vocabulary without an entry for each of the 256 bytes, which is not a byte-level one.
    """
    from tokenizers import pre_tokenizers

    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = tokenizer.get_vocab()
    if not alphabet <= vocabulary.keys():
        return None
    table = np.full(max(vocabulary.values()) + 1, -1, dtype=np.int32)
    for token, index in vocabulary.items():
        if alphabet.issuperset(token):
            table[index] = len(token)
    table[tokenizer.all_special_ids] = -1
    return table


def _bytes_by_offset(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes per token, int32 ``[n]``, from the characters that each token covers. ``[n, 2]`` offsets.

    A character that several tokens share counts for the first of them, one that no token covers (white space that a
    normaliser drops) for the next, or at the end for the last, so that the sum is the length of the text.
    """
    if not offsets:
        return np.zeros(0, dtype=np.int32)
    ends = np.maximum.accumulate([end for _, end in offsets])
    ends[-1] = len(text)
    before = np.concatenate([[0], np.cumsum([len(character.encode()) for character in text], dtype=np.int64)])
    return np.diff(before[ends], prepend=0).astype(np.int32)
