"""Builder of classifiers of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdkit.errors import ConfigError
from kdkit.models import hf_text_classifier
from kdkit.models._build import origin_of

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 20, **SIZES}
IDS = torch.arange(6)[None]


def test_fresh() -> None:
    network = hf_text_classifier(num_classes=3, **BERT)
    assert network(IDS).logits.shape == (1, 3)
    origin = origin_of(network)
    assert origin is not None and not origin.ready
    assert network.config._attn_implementation == "sdpa"
    assert hf_text_classifier(num_classes=3, **BERT, attn_implementation="eager").config._attn_implementation == "eager"


def test_pretrained_keeps_its_classifier_and_an_encoder_gets_one(tmp_path: Path) -> None:
    first = hf_text_classifier(num_classes=3, **BERT).eval()
    first.save_pretrained(tmp_path / "classifier")
    first.bert.save_pretrained(tmp_path / "encoder")
    again = hf_text_classifier(num_classes=3, pretrained=str(tmp_path / "classifier")).eval()
    torch.testing.assert_close(again(IDS).logits, first(IDS).logits)
    other = hf_text_classifier(num_classes=5, pretrained=str(tmp_path / "classifier"))
    encoder = hf_text_classifier(num_classes=3, pretrained=str(tmp_path / "encoder"))
    for network, ready in ((again, True), (other, False), (encoder, False)):
        origin = origin_of(network)
        assert origin is not None and origin.ready is ready
    assert other(IDS).logits.shape == (1, 5)
    torch.testing.assert_close(
        encoder.bert.embeddings.word_embeddings.weight, first.bert.embeddings.word_embeddings.weight
    )


def test_a_form_that_is_asked_for_is_checked(tmp_path: Path) -> None:
    hf_text_classifier(num_classes=3, **BERT).save_pretrained(tmp_path)
    hf_text_classifier(num_classes=3, pretrained=str(tmp_path), **BERT)
    with pytest.raises(ConfigError, match=r"has hidden_size=8 and 16 was asked for; .* set model.hidden_size=8"):
        hf_text_classifier(num_classes=3, pretrained=str(tmp_path), **{**BERT, "hidden_size": 16})
    with pytest.raises(ConfigError, match="has model_type='bert' and 'distilbert' was asked for"):
        hf_text_classifier(num_classes=3, pretrained=str(tmp_path), model_type="distilbert")
    assert hf_text_classifier(num_classes=3, pretrained=False, **BERT)(IDS).logits.shape == (1, 3)


def test_a_folder_inside_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "small_encoder_for_a_test"
    hf_text_classifier(num_classes=3, **BERT).save_pretrained(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('a package with weights is not imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = hf_text_classifier(num_classes=3, pretrained="package:small_encoder_for_a_test/model")
    assert network.config.hidden_size == 8
    assert "small_encoder_for_a_test" not in sys.modules
    with pytest.raises(ConfigError, match="the package 'small_encoder_for_a_test' holds no folder 'modle'"):
        hf_text_classifier(num_classes=3, pretrained="package:small_encoder_for_a_test/modle")
    with pytest.raises(
        ConfigError, match=r"needs the Python package 'no_such_encoder', .* `pip install no-such-encoder`"
    ):
        hf_text_classifier(num_classes=3, pretrained="package:no_such_encoder/model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give pretrained .* model_type .* or both, got none of them"),
        ({"model_type": "bert"}, "a fresh model needs vocab_size, got None"),
        ({**BERT, "model_type": "brt"}, "no text classifier of type 'brt'; did you mean 'bert'"),
        ({**BERT, "hiden_size": 8}, "has no setting 'hiden_size'; did you mean 'hidden_size'"),
        ({**BERT, "attn_implementation": "flash"}, "must be 'sdpa' or 'eager', got 'flash'"),
        ({"pretrained": "/nowhere/at/all"}, "text classifier '/nowhere/at/all' can not be loaded: "),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_text_classifier(num_classes=3, **options)
