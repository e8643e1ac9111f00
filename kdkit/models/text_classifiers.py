"""Classifiers of texts from transformers, fresh or pretrained."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdkit._files import installed_folder
from kdkit.errors import ConfigError
from kdkit.models._build import Origin, construct, note_origin, plain, quiet_transformers
from kdkit.models.vision import hf_config

__all__ = ["hf_text_classifier"]


def hf_text_classifier(
    *,
    num_classes: int,
    pretrained: str | bool | None = None,
    model_type: str | None = None,
    vocab_size: int | None = None,
    attn_implementation: str = "sdpa",
    **options: Any,
) -> nn.Module:
    """A sequence classifier of transformers: pretrained by name or folder, or fresh by model type.

    With both, the weights are those of ``pretrained``, which must be a network of the form that ``model_type`` and
    ``options`` say; without ``pretrained`` the same words make a fresh one.

    Args:
        num_classes: outputs. A pretrained network with as many keeps its classifier, any other gets a new one.
        pretrained: folder or hub name for ``from_pretrained``, or ``"package:NAME/FOLDER"`` for a folder inside an
            installed Python package; ``None`` and ``False`` for a fresh network.
        model_type: e.g. ``"bert"`` or ``"distilbert"`` for a fresh network.
        vocab_size: entries of the vocabulary of a fresh network.
        attn_implementation: ``"sdpa"``, or ``"eager"`` for losses of attention maps.
        options: fields of the configuration, e.g. ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``,
            ``num_attention_heads``, ``max_position_embeddings``; with ``pretrained`` alone, arguments of
            ``from_pretrained`` such as ``dtype`` or ``hidden_dropout_prob``.

    Raises:
        ConfigError: for an unknown model type or field (listing close ones), weights that can not be read, or a
            pretrained network of another form.
    """
    options = plain(options)
    if attn_implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"hf_text_classifier: attn_implementation must be 'sdpa' or 'eager', got '{attn_implementation}'"
        )
    if pretrained:
        return _pretrained(str(pretrained), num_classes, model_type, attn_implementation, options)
    if model_type is None:
        raise ConfigError("hf_text_classifier: give pretrained (a name), model_type (fresh) or both, got none of them")
    if vocab_size is None:
        raise ConfigError("hf_text_classifier: a fresh model needs vocab_size, got None; take it from the data's spec")
    return _fresh(model_type, {**options, "vocab_size": vocab_size, "num_labels": num_classes}, attn_implementation)


def _fresh(model_type: str, options: dict[str, Any], attn_implementation: str) -> nn.Module:
    import transformers

    config = hf_config(model_type, "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", options)
    build = transformers.AutoModelForSequenceClassification.from_config
    what = f"transformers text classifier '{model_type}'"
    module = construct(what, build, config, attn_implementation=attn_implementation)
    return note_origin(module, Origin("transformers", type(module).__name__))


def _pretrained(
    name: str, num_classes: int, model_type: str | None, attn_implementation: str, options: dict[str, Any]
) -> nn.Module:
    import transformers

    folder = installed_folder(name) if name.startswith("package:") else name
    passed = options if model_type is None else {}
    try:
        with quiet_transformers():
            module, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=num_classes,
                ignore_mismatched_sizes=True,
                attn_implementation=attn_implementation,
                output_loading_info=True,
                **passed,
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"text classifier '{name}' can not be loaded: {reason}") from error
    asked = {} if model_type is None else {"model_type": model_type, **options}
    for key, value in asked.items():
        found = getattr(module.config, key, None)
        if found != value:
            raise ConfigError(
                f"text classifier '{name}' has {key}={found!r} and {value!r} was asked for; name a network of that "
                f"form, or set model.{key}={found!r}"
            )
    ready = not report["missing_keys"] and not report["mismatched_keys"]
    return note_origin(module, Origin("transformers", type(module).__name__, ready=ready))
