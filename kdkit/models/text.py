"""Causal language models from transformers, fresh or pretrained, optionally with LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdkit.errors import ConfigError
from kdkit.models._build import Origin, construct, note_origin, plain
from kdkit.models.vision import hf_config

__all__ = ["hf_causal_lm"]


def hf_causal_lm(
    *,
    pretrained: str | None = None,
    model_type: str | None = None,
    vocab_size: int | None = None,
    attn_implementation: str = "sdpa",
    lora: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A causal language model of transformers: pretrained by name or folder, or fresh by model type.

    Args:
        pretrained: folder or hub name for ``from_pretrained``.
        model_type: e.g. ``"llama"`` or ``"gpt2"`` for a fresh network; exactly one of the two is given.
        vocab_size: entries of the vocabulary of a fresh network.
        attn_implementation: ``"sdpa"`` or ``"eager"``; others can not keep packed documents apart.
        lora: arguments of ``peft.LoraConfig``, e.g. ``{r: 8, lora_alpha: 16}``: only adapters are trained.
        options: fields of the configuration, e.g. ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``,
            ``num_attention_heads``, ``num_key_value_heads``, ``max_position_embeddings``, ``tie_word_embeddings``;
            for a pretrained network, arguments of ``from_pretrained`` such as ``dtype``.

    Raises:
        ConfigError: for an unknown model type or field (listing close ones), weights that can not be read, or
            ``lora`` without PEFT installed.
    """
    import transformers

    if (pretrained is None) == (model_type is None):
        raise ConfigError("hf_causal_lm: give pretrained (a name) or model_type (fresh), not both or none")
    if attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"hf_causal_lm: attn_implementation must be 'sdpa' or 'eager', which take a mask that keeps packed "
            f"documents apart, got '{attn_implementation}'"
        )
    options = plain(options)
    if model_type is not None:
        if vocab_size is None:
            raise ConfigError("hf_causal_lm: a fresh model needs vocab_size, got None; take it from the data's spec")
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # those of the data, see the export
        options = {**tokens, **options, "vocab_size": vocab_size}
        config = hf_config(model_type, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", options)
        what = f"transformers model '{model_type}'"
        build = transformers.AutoModelForCausalLM.from_config
        module = construct(what, build, config, attn_implementation=attn_implementation)
    else:
        try:
            module = transformers.AutoModelForCausalLM.from_pretrained(
                pretrained, attn_implementation=attn_implementation, **options
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"language model '{pretrained}' can not be loaded: {reason}") from error
    if lora is not None:
        module = _with_lora(module, plain(lora))
    return note_origin(module, Origin("transformers", type(module).__name__, ready=pretrained is not None))


def _with_lora(module: nn.Module, options: dict[str, Any]) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("hf_causal_lm: lora needs PEFT; install it with `pip install 'kdkit[llm]'`") from error
    config = construct("the LoRA configuration", peft.LoraConfig, task_type="CAUSAL_LM", **options)
    adapted: nn.Module = construct("the LoRA network", peft.get_peft_model, module, config)
    return adapted
