"""Builder of causal language models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from kdkit.errors import ConfigError
from kdkit.models import count_parameters, hf_causal_lm

LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
IDS = torch.arange(6)[None]


def test_fresh() -> None:
    network = hf_causal_lm(**LLAMA, num_key_value_heads=1, tie_word_embeddings=True)
    assert network(IDS).logits.shape == (1, 6, 20)
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert network.config._attn_implementation == "sdpa"
    assert hf_causal_lm(**LLAMA, attn_implementation="eager").config._attn_implementation == "eager"


def test_common_names_work_for_gpt2() -> None:
    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    network = hf_causal_lm(model_type="gpt2", vocab_size=20, **options)
    assert network.config.n_embd == 8
    assert network.config.n_positions == 16
    assert network(IDS).logits.shape == (1, 6, 20)


def test_pretrained(tmp_path: Path) -> None:
    first = hf_causal_lm(**LLAMA).eval()
    first.save_pretrained(tmp_path)
    again = hf_causal_lm(pretrained=str(tmp_path)).eval()
    assert again.config._attn_implementation == "sdpa"
    torch.testing.assert_close(again(IDS).logits, first(IDS).logits)


def test_lora_trains_adapters_only() -> None:
    pytest.importorskip("peft")
    network = hf_causal_lm(**LLAMA, lora=OmegaConf.create({"r": 2, "target_modules": ["q_proj", "v_proj"]}))
    assert count_parameters(network, trainable=True) == 2 * (8 * 2 + 2 * 8)
    assert network(IDS).logits.shape == (1, 6, 20)


def test_lora_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora needs PEFT; install it with `pip install 'kdkit\[llm\]'`"):
        hf_causal_lm(**LLAMA, lora={"r": 2})


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give pretrained .* or model_type .*, not both or none"):
        hf_causal_lm()
    with pytest.raises(ConfigError, match=r"has no causal language model of type 'lama'; did you mean 'llama'"):
        hf_causal_lm(**{**LLAMA, "model_type": "lama"})
    with pytest.raises(
        ConfigError, match=r"model type 'llama' has no setting 'hiden_size'; did you mean 'hidden_size'"
    ):
        hf_causal_lm(**LLAMA, hiden_size=8)
    with pytest.raises(ConfigError, match=r"a fresh model needs vocab_size, got None"):
        hf_causal_lm(model_type="llama")
    with pytest.raises(ConfigError, match=r"attn_implementation must be 'sdpa' or 'eager'.*, got 'flash_attention_2'"):
        hf_causal_lm(**LLAMA, attn_implementation="flash_attention_2")
    with pytest.raises(ConfigError, match=r"language model '.*nowhere' can not be loaded"):
        hf_causal_lm(pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"can not be built"):
        hf_causal_lm(**{**LLAMA, "hidden_size": 7, "num_attention_heads": 3})
