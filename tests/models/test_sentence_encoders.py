"""Encoders of texts with mean pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdkit.errors import ConfigError
from kdkit.models import SentenceEncoder, hf_sentence_encoder
from kdkit.models._build import origin_of

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
IDS = torch.arange(1, 13).view(2, 6)
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def test_the_mean_of_what_is_no_padding_has_length_one() -> None:
    torch.manual_seed(0)
    network = hf_sentence_encoder(**BERT).eval()
    vectors = network(IDS, MASK)
    states = network.encoder(input_ids=IDS[1:, :4]).last_hidden_state
    torch.testing.assert_close(vectors[1], torch.nn.functional.normalize(states.mean(1), dim=-1)[0])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_saved_and_loaded(tmp_path: Path) -> None:
    network = hf_sentence_encoder(**BERT).eval()
    network.save_pretrained(tmp_path)
    again = hf_sentence_encoder(pretrained=str(tmp_path)).eval()
    torch.testing.assert_close(again(IDS, MASK), network(IDS, MASK))
    _, report = SentenceEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    origin = origin_of(again)
    assert origin is not None and origin.ready


def test_some_layers_are_kept(tmp_path: Path) -> None:
    hf_sentence_encoder(**BERT).save_pretrained(tmp_path)
    whole, part = (hf_sentence_encoder(pretrained=str(tmp_path), keep_layers=keep) for keep in (None, [0, 2]))
    first, last = part.encoder.encoder.layer
    for mine, its in ((first, 0), (last, 2)):
        for name, value in mine.state_dict().items():
            torch.testing.assert_close(value, whole.encoder.encoder.layer[its].state_dict()[name])
    origin = origin_of(part)
    assert part.config.num_hidden_layers == 2 and origin is not None and not origin.ready
    part.save_pretrained(tmp_path / "part")
    again = hf_sentence_encoder(pretrained=str(tmp_path / "part")).eval()
    torch.testing.assert_close(again(IDS, MASK), part.eval()(IDS, MASK))
    with pytest.raises(ConfigError, match=r"keep_layers must be numbers of the 3 layers, from 0 to 2, got \[0, 3\]"):
        hf_sentence_encoder(pretrained=str(tmp_path), keep_layers=[0, 3])


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"give pretrained .* or model_type and vocab_size"):
        hf_sentence_encoder(model_type="bert")
    with pytest.raises(ConfigError, match="sentence encoder '/nowhere/at/all' can not be loaded"):
        hf_sentence_encoder(pretrained="/nowhere/at/all")
    with pytest.raises(ConfigError, match="needs the Python package 'no_such_encoder', which is not installed"):
        hf_sentence_encoder(pretrained="package:no_such_encoder/model")
    with pytest.raises(ConfigError, match="no model of type 'brt'"):
        hf_sentence_encoder(**{**BERT, "model_type": "brt"})
