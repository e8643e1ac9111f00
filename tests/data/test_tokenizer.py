"""Trained and given tokenizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from kdkit.data._tokenizer import given_tokenizer, tokenizer_key, trained_tokenizer
from kdkit.errors import DataError, InputError

TEXTS = ["def f(x):\n    return x + 1\n", "def g(x):\n    return f(x) * 2\n", "größe = 漢字\n"] * 4


def no_texts() -> Any:
    raise AssertionError("the texts were read although the store has the tokenizer")
    yield


def test_trained_tokenizer() -> None:
    tokenizer = trained_tokenizer(TEXTS, "key", 290, 64)
    assert len(tokenizer) == 290
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 1)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.model_max_length) == ("<|pad|>", "<|eos|>", 64)
    for text in [*TEXTS, "never seen: \x00\x7f 😀"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_saved_and_loaded_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = trained_tokenizer(TEXTS, "key", 290, 64)
    tokenizer.save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
    assert (again.pad_token_id, again.eos_token_id) == (0, 1)


def test_kept_in_the_store_by_corpus_and_size(store: Path) -> None:
    first = trained_tokenizer(TEXTS, "key", 290, 64)
    second = trained_tokenizer(no_texts(), "key", 290, 32)
    assert tokenizer_key(first) == tokenizer_key(second)
    assert second.model_max_length == 32
    trained_tokenizer(TEXTS, "key", 280, 64)
    trained_tokenizer(TEXTS, "other", 290, 64)
    assert len(list((store / "tokenizers").iterdir())) == 3


def test_a_damaged_file_is_made_again(store: Path) -> None:
    key = tokenizer_key(trained_tokenizer(TEXTS, "key", 290, 64))
    (path,) = (store / "tokenizers").rglob("tokenizer.json")
    path.write_text(path.read_text()[:500])
    assert tokenizer_key(trained_tokenizer(TEXTS, "key", 290, 64)) == key
    assert tokenizer_key(trained_tokenizer(no_texts(), "key", 290, 64)) == key


def test_training_is_the_same_in_every_process(store: Path) -> None:
    key = tokenizer_key(trained_tokenizer(TEXTS, "key", 290, 64))
    code = (
        "from kdkit.data._tokenizer import _train, trained_tokenizer, tokenizer_key\n"
        f"print(tokenizer_key(trained_tokenizer({TEXTS!r}, 'another key', 290, 64)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == key


def test_vocab_size_has_a_floor() -> None:
    with pytest.raises(
        InputError, match=r"vocab_size must be at least 258 \(256 bytes, <\|pad\|>, <\|eos\|>\), got 257"
    ):
        trained_tokenizer(TEXTS, "key", 257, 64)


def test_given_by_folder_or_object(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(TEXTS, "key", 290, 64)
    assert given_tokenizer(tokenizer) is tokenizer
    tokenizer.save_pretrained(tmp_path / "out")
    assert tokenizer_key(given_tokenizer(str(tmp_path / "out"))) == tokenizer_key(tokenizer)


def test_padding_falls_back_to_eos() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}))
    tokenizer = given_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}))
    with pytest.raises(DataError, match=r"tokenizer '[A-Za-z]+' has no EOS token, which ends every document"):
        given_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"tokenizer '.*empty' cannot be loaded \(.*\); give a folder or a hub name"):
        given_tokenizer(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="tokenizer 'object' is not a fast tokenizer; convert it"):
        given_tokenizer(object())
