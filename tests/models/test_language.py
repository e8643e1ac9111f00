"""Language models that hand out hidden states and head: the same logits, features, lengths of life."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError
from kdkit.models import LanguageNetwork, hf_causal_lm

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "max_position_embeddings": 16}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZE, **MORE},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16},
    "qwen2": {"model_type": "qwen2", **SIZE, **MORE},
    "gemma2": {
        "model_type": "gemma2", **SIZE, **MORE, "head_dim": 4, "final_logit_softcapping": 0.05,
        "attn_implementation": "eager",
    },
    "cohere": {"model_type": "cohere", **SIZE, **MORE, "logit_scale": 0.0625},
    "granite": {"model_type": "granite", **SIZE, **MORE, "logits_scaling": 4.0},
    "gpt_neox": {"model_type": "gpt_neox", **SIZE, "max_position_embeddings": 16},
    "opt": {
        "model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 16, "word_embed_proj_dim": 8,
    },
}  # fmt: skip


def network(name: str = "llama", **more: Any) -> LanguageNetwork:
    torch.manual_seed(0)
    return LanguageNetwork(hf_causal_lm(vocab_size=30, **MODELS[name], **more), name=name).eval()


def inputs() -> dict[str, Tensor]:
    ids = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(9).expand(2, 9)}


@pytest.mark.parametrize("name", MODELS)
def test_states_and_head_make_the_logits(name: str) -> None:
    own = inputs()
    if name == "opt":
        del own["position_ids"]
        own["attention_mask"] = torch.ones(2, 9, dtype=torch.long)
    wrapped = network(name)
    if wrapped.attention == "eager":
        own["attention_mask"] = torch.zeros(2, 1, 9, 9).masked_fill(~own["attention_mask"], -1e30)
    expected = wrapped(own).logits
    wrapped.fuse(own)
    output = wrapped(own)
    assert output.head is not None and output.logits.shape == expected.shape and output.logits.isnan().all()
    assert output.logits.untyped_storage().nbytes() <= 8
    torch.testing.assert_close(output.head.logits(), expected, rtol=1e-5, atol=1e-6)
    index = torch.tensor([3, 17, 4])
    torch.testing.assert_close(output.rows(index), expected.flatten(0, 1)[index], rtol=1e-5, atol=1e-6)
    with wrapped.whole():
        torch.testing.assert_close(wrapped(own).logits, expected)
    assert copy.deepcopy(wrapped)(own).head is not None
    wrapped.unfuse()
    torch.testing.assert_close(wrapped(own).logits, expected)


def test_gradients_reach_tied_embeddings_and_the_trunk() -> None:
    gradients = []
    for fused in (False, True):
        wrapped = network(tie_word_embeddings=True)
        if fused:
            wrapped.fuse(inputs())
        output = wrapped(inputs())
        logits = output.logits if output.head is None else output.head.logits()
        logits.square().mean().backward()
        gradients.append({name: value.grad for name, value in wrapped.module.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)


def test_features_are_recorded_with_and_without() -> None:
    wrapped = network()
    wrapped.tap({"last": "hidden_states.2", "first": "hidden_states.1", "own": "penultimate"})
    expected = wrapped(inputs()).features
    wrapped.fuse(inputs())
    for name, value in wrapped(inputs()).features.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    wrapped.tap({"logits": "lm_head"})
    with pytest.raises(ConfigError, match="tapped at 'lm_head', which gives logits"):
        wrapped.fuse(inputs())


def test_an_adapted_student_keeps_its_plain_head() -> None:
    peft = pytest.importorskip("peft")
    base = hf_causal_lm(vocab_size=30, **MODELS["llama"])
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    wrapped = LanguageNetwork(adapted).eval()
    expected = wrapped(inputs()).logits
    wrapped.fuse(inputs())
    head = wrapped(inputs()).head
    assert head is not None
    torch.testing.assert_close(head.logits(), expected, rtol=1e-5, atol=1e-6)
    adapted = peft.get_peft_model(
        hf_causal_lm(vocab_size=30, **MODELS["llama"]), peft.LoraConfig(target_modules=["lm_head"])
    )
    with pytest.raises(ConfigError, match="not a trunk and a plain linear head"):
        LanguageNetwork(adapted).fuse(inputs())


class Tempered(nn.Module):
    """A model that does something with its logits that nobody knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = hf_causal_lm(vocab_size=30, **MODELS["llama"])
        self.config = self.inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.inner.get_decoder()

    def forward(self, **inputs: Any) -> Tensor:
        return self.inner(**inputs).logits / 1.2


def test_what_does_more_to_its_logits_is_refused() -> None:
    wrapped = LanguageNetwork(Tempered(), name="student")
    with pytest.raises(ConfigError, match="the student does more to its logits"):
        wrapped.fuse(inputs())
    assert not wrapped.fused and wrapped(inputs()).head is None
