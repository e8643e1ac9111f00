"""Tokens and the bytes they stand for, for several kinds of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdkit.data._documents import Document
from kdkit.data._encoding import Encoder
from kdkit.data._tokenizer import trained_tokenizer

TEXTS = [
    "plain words\n\tand\r\n  white space   ",
    "größe 漢字 😀😀 é e\u0301 \u00a0x",
    "names of <|eos|> and <s> inside",
    "x",
    "\n",
    "ｆｕｌｌ ﬁ ligature",
]


def byte_level() -> Any:
    return trained_tokenizer(TEXTS * 3, "key", 300, 16)


def sentence_piece() -> Any:
    """As Llama 2: white space marks, unknown characters as single bytes, a BOS token before every text."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {
        token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet, "▁", *"abcdefinorstwxy"])
    }
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> Any:
    """Lower case, compatibility forms, white space dropped."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")


MAKERS = [byte_level, sentence_piece, word_piece]


@pytest.mark.parametrize("make", MAKERS)
def test_bytes_add_up(make: Callable[[], Any]) -> None:
    for text, tokens in zip(TEXTS, Encoder(make())([Document(text) for text in TEXTS]), strict=True):
        if len(tokens.ids) > 2:  # a tokenizer that drops white space makes nothing of a line break
            assert int(tokens.num_bytes.sum()) == len(text.encode()), repr(text)
        assert (tokens.num_bytes >= 0).all()
        assert tokens.num_bytes[0] == tokens.num_bytes[-1] == 0
        assert not tokens.learn[0]
        assert tokens.learn[1:].all()


@pytest.mark.parametrize("make", MAKERS)
def test_a_document_begins_and_ends_with_special_tokens(make: Callable[[], Any]) -> None:
    tokenizer = make()
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for tokens in Encoder(tokenizer)([Document(text) for text in TEXTS]):
        assert tokens.ids[0] == start
        assert tokens.ids[-1] == tokenizer.eos_token_id
        assert not set(tokens.ids[1:-1]) & {start, tokenizer.eos_token_id}


def test_byte_level_ids_are_the_tokenizers_and_decode_to_the_text() -> None:
    tokenizer = byte_level()
    for text, tokens in zip(TEXTS, Encoder(tokenizer)([Document(text) for text in TEXTS])):
        assert tokenizer.decode(tokens.ids[1:-1]) == text
        if "<" not in text:
            assert tokens.ids[1:-1].tolist() == tokenizer(text).input_ids


def test_table_and_offsets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    by_table = list(Encoder(tokenizer)([Document(text) for text in TEXTS]))
    encoder = Encoder(tokenizer)
    assert encoder._table is not None
    encoder._table = None
    for one, two in zip(by_table, encoder([Document(text) for text in TEXTS])):
        assert np.array_equal(one.ids, two.ids)
        assert one.num_bytes.sum() == two.num_bytes.sum()
    assert Encoder(sentence_piece())._table is None


def test_offsets_take_over_where_a_normalizer_changes_the_length() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "e\u0301 x"
    (tokens,) = Encoder(tokenizer)([Document(text)])
    assert int(tokens.num_bytes.sum()) == len(text.encode()) == 5


def test_prompts_are_read_but_not_learnt() -> None:
    tokenizer = byte_level()
    (tokens,) = Encoder(tokenizer)([Document("words\n", "plain ")])
    prompt, text = tokenizer("plain ").input_ids, tokenizer("words\n").input_ids
    assert tokens.ids.tolist() == [*prompt, *text, tokenizer.eos_token_id]
    assert tokens.learn.tolist() == [False] * len(prompt) + [True] * (len(text) + 1)
    assert int(tokens.num_bytes[tokens.learn].sum()) == 6
    assert tokens.whole


def test_prompts_follow_a_bos_token_that_the_tokenizer_always_adds() -> None:
    tokenizer = sentence_piece()
    (tokens,) = Encoder(tokenizer)([Document("words", "plain ")])
    assert tokens.ids[:2].tolist() == tokenizer("plain ").input_ids[:2]
    assert tokens.ids[0] == tokenizer.bos_token_id


def test_the_users_tokenizer_is_left_as_it_was() -> None:
    tokenizer = byte_level()
    list(Encoder(tokenizer)([Document("a <|eos|> b")]))
    assert tokenizer("<|eos|>").input_ids == [tokenizer.eos_token_id]
