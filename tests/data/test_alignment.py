"""Two tokenizations of one text meet where both have a token's end, and vocabularies are compared by bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdkit.data import align_tokens, match_vocabularies
from kdkit.data._alignment import vocabulary_bytes
from kdkit.data._documents import Document
from kdkit.data._encoding import Encoder
from kdkit.data._pairing import pair_up
from kdkit.errors import InputError

TEXTS = [
    "the quick brown fox jumps over the lazy dog; the dog sleeps",
    "größe naïve café co\u0301ute\u0301 e\u0301te\u0301",
    "漢字と仮名 日本語の文 漢字",
    "flags \U0001f1e9\U0001f1ea family \U0001f468\u200d\U0001f469\u200d\U0001f467 ok \U0001f600",
    "    def f(x):\n\treturn x  # done\r\n\n\n",
    "  leading and trailing  ",
    " ",
    "\n",
    "<|eos|> is text here, so is ▁ and Ġ and <0x0A>",
]


def byte_bpe(size: int = 340) -> Any:
    """Byte-level, in the manner of GPT-2."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|eos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", pad_token="<|pad|>")


def metaspace(kind: str = "unigram", scheme: str = "always") -> Any:
    """In the manner of SentencePiece: ``▁`` for a space, a dummy prefix, bytes for unknown characters."""
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "bpe":
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        trainer: Any = trainers.BpeTrainer(vocab_size=400, special_tokens=special + fallback, show_progress=False)
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.train_from_iterator([TEXTS[0], TEXTS[1]] * 3, trainer)
    else:
        pieces = [(special[0], 0.0), *((token, 0.0) for token in special[1:])]
        words = {word for text in (TEXTS[0], TEXTS[1]) for word in text.split()}
        letters = sorted(set("abcdefghijklmnopqrstuvwxyz;▁"))
        pieces += [(f"▁{word}", -5.0 - i / 100) for i, word in enumerate(sorted(words))]
        pieces += [(letter, -12.0) for letter in letters] + [(token, -30.0) for token in fallback]
        backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


OTHERS: dict[str, Callable[[], Any]] = {
    "unigram": metaspace,
    "metaspace bpe": lambda: metaspace("bpe"),
    "without prefix": lambda: metaspace("unigram", "never"),
    "another byte level": lambda: byte_bpe(280),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_groups_cover_the_same_bytes_of_any_text(other: Callable[[], Any]) -> None:
    student, teacher = byte_bpe(), other()
    documents = [Document(text) for text in TEXTS]
    for pair, document in zip(
        pair_up(Encoder(student)(documents), Encoder(teacher)(documents)), documents, strict=True
    ):
        text = document.text.encode()
        ends = np.cumsum(pair.sizes, axis=0)
        for side in (0, 1):
            tokens = pair.sides[side]
            assert ends[-1, side] == len(tokens.ids)
            sizes = np.add.reduceat(tokens.num_bytes, ends[:, side] - pair.sizes[:, side])
            assert sizes.tolist() == pair.num_bytes.tolist()
        assert pair.num_bytes.sum() == len(text)
        assert pair.sizes[[0, -1]].tolist() == [[1, 1], [1, 1]], "start and end are groups of their own"
        assert pair.learn.tolist() == [False] + [True] * (len(pair.sizes) - 1)
        known, at = vocabulary_bytes(student), 1
        for count, length, start in zip(
            pair.sizes[1:-1, 0], pair.num_bytes[1:-1], np.cumsum(pair.num_bytes)[:-2], strict=True
        ):
            written = b"".join(known[int(token)] for token in pair.sides[0].ids[at : at + count])
            assert written == text[start : start + length]
            at += count


def test_groups_are_the_finest() -> None:
    student, teacher = align_tokens([3, 2, 1, 4], [1, 2, 3, 1, 1, 2])
    assert student.tolist() == [1, 2, 2, 3]
    assert teacher.tolist() == [1, 1, 2, 3, 3, 3]


def test_tokens_without_bytes_go_with_the_one_before() -> None:
    student, teacher = align_tokens([0, 3, 0, 0, 2], [5])
    assert student.tolist() == [1] * 5
    assert teacher.tolist() == [1]
    student, teacher = align_tokens([0, 3, 0, 0, 2], [3, 2])
    assert student.tolist() == [1, 1, 1, 1, 2]
    assert teacher.tolist() == [1, 2]
    assert [groups.tolist() for groups in align_tokens([], [0])] == [[], [0]]


def test_texts_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"teacher_bytes must add up to the 3 bytes of student_bytes, got 4; tokenise"):
        align_tokens([1, 2], [4])


def test_a_character_in_several_tokens_stays_whole() -> None:
    student, teacher = byte_bpe(260), metaspace()
    (pair,) = pair_up(Encoder(student)([Document("x漢y")]), Encoder(teacher)([Document("x漢y")]))
    assert pair.num_bytes.tolist() == [0, 1, 3, 1, 0]
    assert pair.sizes[2].tolist() == [3, 3]


def test_prompts_are_read_and_not_compared() -> None:
    student, teacher = byte_bpe(), metaspace()
    document = [Document("the dog", "the quick")]
    (pair,) = pair_up(Encoder(student)(document), Encoder(teacher)(document))
    learnt = pair.num_bytes[pair.learn].sum()
    assert learnt == len("the dog")
    assert not pair.learn[0]
    assert pair.learn[-1]


# ---- vocabularies --------------------------------------------------------------------------------------------------


def test_entries_with_the_same_bytes_are_found_whatever_they_are_called() -> None:
    student, teacher = byte_bpe(), metaspace()
    pairs = match_vocabularies(student, teacher)
    assert pairs.dtype == np.int64
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.diff(pairs[:, 0]) > 0).all()
    of = dict(pairs.tolist())
    names = {index: teacher.convert_ids_to_tokens(other) for index, other in of.items()}
    by_token = {student.convert_ids_to_tokens(index): name for index, name in names.items()}
    assert by_token["Ġthe"] == "▁the"
    assert by_token["<|eos|>"] == "</s>"
    assert by_token["Ċ"] == "<0x0A>"
    assert by_token["æ"] == "<0xE6>"
    assert by_token["a"] == "a", "the letter, and not the fallback of its byte"
    assert by_token["Ġ"] == "▁"
    assert "<s>" not in by_token.values()
    bytes_of = vocabulary_bytes(student), vocabulary_bytes(teacher)
    for index, other in of.items():
        if index != student.eos_token_id and index != student.pad_token_id:
            assert bytes_of[0][index] == bytes_of[1][other]


def test_a_vocabulary_matches_itself() -> None:
    for tokenizer in (byte_bpe(), metaspace("bpe")):
        pairs = match_vocabularies(tokenizer, tokenizer)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        assert len(pairs) >= len(tokenizer) - 30, "all but fallbacks of bytes that have a letter"


def test_special_tokens_go_by_role_and_then_by_name() -> None:
    student, teacher = byte_bpe(), metaspace()
    for tokenizer in (student, teacher):
        tokenizer.add_tokens([AddedToken("<|user|>", special=True), AddedToken("plain", special=False)])
    named = {
        student.convert_ids_to_tokens(int(s)): teacher.convert_ids_to_tokens(int(t))
        for s, t in match_vocabularies(student, teacher)
    }
    assert named["<|user|>"] == "<|user|>"
    assert named["plain"] == "plain"
    teacher.add_tokens(["<|eos|>"])
    again = dict(match_vocabularies(student, teacher).tolist())
    assert again[student.eos_token_id] == teacher.eos_token_id, "ordinary text of that name is something else"
