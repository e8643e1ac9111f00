"""Image classifiers from timm, torchvision and transformers, as plain modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdkit.errors import ConfigError, did_you_mean
from kdkit.features.taps import find_head
from kdkit.models._build import Origin, check_options, construct, note_origin, plain

__all__ = ["hf_image_classifier", "timm_model", "torchvision_model"]


def timm_model(
    name: str, *, num_classes: int, in_chans: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """A model of timm by name.

    Args:
        name: as in ``timm.list_models()``, with or without a weight tag, or ``local-dir:FOLDER``, ``hf-hub:NAME``.
        num_classes: outputs.
        in_chans: channels of the image.
        pretrained: download timm's weights; the network then normalises its input as they expect.
        options: passed to ``timm.create_model``, e.g. ``channels=[4, 8, 16, 32]`` or ``img_size=32``.

    Raises:
        ConfigError: for an unknown name (listing close ones), an option that the model does not take, or weights
            that can not be fetched.
    """
    import timm

    if ":" not in name and not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(f"timm has no model '{name}'{did_you_mean(name.split('.')[0], known)}")
    options = plain(options)
    arguments = {"pretrained": pretrained, "num_classes": num_classes, "in_chans": in_chans, **options}
    try:
        module = construct(f"timm model '{name}'", timm.create_model, name, **arguments)
    except OSError as error:
        raise ConfigError(
            f"the weights of timm model '{name}' can not be read ({' '.join(str(error).split())[:200]}); "
            "set pretrained=false, or weights to a local file"
        ) from error
    config = module.pretrained_cfg
    own = pretrained or ":" in name
    stored = getattr(module, "_model_args", {}) if ":" in name else {}
    origin = Origin(
        "timm",
        config.get("architecture") or name.split(".")[0],
        {
            **{key: plain(value) for key, value in stored.items() if key != "num_classes"},
            **options,
            "in_chans": in_chans,
        },
        tuple(config["mean"]) if own and config.get("mean") else None,
        tuple(config["std"]) if own and config.get("std") else None,
        ready=own and config.get("num_classes") == num_classes,
    )
    return note_origin(module, origin)


def torchvision_model(
    name: str, *, num_classes: int, in_chans: int = 3, weights: str | None = None, **options: Any
) -> nn.Module:
    """A classification model of torchvision by name.

    Args:
        name: as in ``torchvision.models.list_models(module=torchvision.models)``.
        num_classes: outputs; a pretrained classifier of another width is replaced by a fresh one.
        in_chans: channels of the image; the first convolution is replaced when it is not 3.
        weights: name of pretrained weights, e.g. ``"DEFAULT"`` or ``"IMAGENET1K_V1"``, or ``None``.
        options: passed to the model's constructor.

    Raises:
        ConfigError: for an unknown name or option, for weights that do not exist or can not be fetched, and for
            ``weights`` together with images that do not have 3 channels.
    """
    import torchvision.models as zoo

    known = zoo.list_models(module=zoo)
    if name not in known:
        raise ConfigError(f"torchvision has no classification model '{name}'{did_you_mean(name, known)}")
    if weights is None:
        module = construct(
            f"torchvision model '{name}'", zoo.get_model, name, weights=None, num_classes=num_classes, **plain(options)
        )
        if in_chans != 3:
            _replace_first_conv(module, in_chans)
        return note_origin(module, Origin("torchvision", name))
    if in_chans != 3:
        raise ConfigError(
            f"torchvision_model: weights='{weights}' needs images of 3 channels, got in_chans={in_chans}; "
            "use weights=null, or kdkit.models.timm_model, which adapts pretrained weights"
        )
    choices = zoo.get_model_weights(name)
    if weights != "DEFAULT" and weights not in choices.__members__:
        raise ConfigError(
            f"torchvision model '{name}' has no weights '{weights}'{did_you_mean(weights, choices.__members__)}"
        )
    entry = choices[weights]
    try:
        module = construct(f"torchvision model '{name}'", zoo.get_model, name, weights=entry, **plain(options))
    except OSError as error:
        raise ConfigError(
            f"weights '{weights}' of torchvision model '{name}' can not be fetched ({error}); "
            "set model.weights=null, or weights to a local file"
        ) from error
    head_name, head = find_head(module)
    ready = not isinstance(head, nn.Linear) or head.out_features == num_classes
    if isinstance(head, nn.Linear) and not ready:
        _replace(module, head_name, nn.Linear(head.in_features, num_classes))
    preset = entry.transforms()
    return note_origin(module, Origin("torchvision", name, {}, tuple(preset.mean), tuple(preset.std), ready))


def hf_image_classifier(
    *,
    pretrained: str | None = None,
    model_type: str | None = None,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """An image classifier of transformers: pretrained by name or folder, or fresh by model type.

    Args:
        pretrained: folder or hub name for ``from_pretrained``; the network then normalises as its image processor says.
        model_type: e.g. ``"vit"`` for a fresh network; exactly one of the two is given.
        num_classes: outputs.
        in_chans: channels of the image.
        image_size: side of the image in pixels, for a fresh network that needs it.
        options: fields of the model's configuration, e.g. ``hidden_size``, ``patch_size``.

    Raises:
        ConfigError: for an unknown model type or field (listing close ones), or weights that can not be read.
    """
    import transformers

    options = plain(options)
    if (pretrained is None) == (model_type is None):
        raise ConfigError("hf_image_classifier: give pretrained (a name) or model_type (fresh), not both or none")
    if model_type is not None:
        if image_size is not None:
            options["image_size"] = image_size
        options |= {"num_labels": num_classes, "num_channels": in_chans}
        config = hf_config(model_type, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", options)
        what = f"transformers image classifier '{model_type}'"
        module = construct(what, transformers.AutoModelForImageClassification.from_config, config)
        return note_origin(module, Origin("transformers", type(module).__name__))
    try:
        module = transformers.AutoModelForImageClassification.from_pretrained(
            pretrained, num_labels=num_classes, ignore_mismatched_sizes=True, **options
        )
        processor = transformers.AutoImageProcessor.from_pretrained(pretrained)
        ready = transformers.AutoConfig.from_pretrained(pretrained).num_labels == num_classes
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"image classifier '{pretrained}' can not be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    statistics = tuple(processor.image_mean), tuple(processor.image_std)
    return note_origin(module, Origin("transformers", type(module).__name__, {}, *statistics, ready))


def hf_config(model_type: str, mapping: str, options: dict[str, Any]) -> Any:
    """A configuration of transformers, with every option checked against the fields that this type has."""
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    known = list(getattr(modeling_auto, mapping))
    if model_type not in known:
        kinds = {"CAUSAL": "causal language model", "SEQUENCE": "text classifier", "MODEL_MAPPING": "model"}
        kind = next((words for part, words in kinds.items() if part in mapping), "image classifier")
        raise ConfigError(f"transformers has no {kind} of type '{model_type}'{did_you_mean(model_type, known)}")
    default = AutoConfig.for_model(model_type)
    fields = {*default.to_dict(), *getattr(default, "attribute_map", {}), "num_labels", "attn_implementation", "dtype"}
    check_options(f"transformers model type '{model_type}'", options, fields)
    return construct(f"the configuration of '{model_type}'", AutoConfig.for_model, model_type, **options)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


def _replace_first_conv(module: nn.Module, in_chans: int) -> None:
    name, conv = next((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    fresh = nn.Conv2d(
        in_chans,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    _replace(module, name, fresh)
