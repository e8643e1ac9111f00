"""The student as files that timm, transformers or torch load by themselves, without kdkit."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit._files import atomic_dir, to_json
from kdkit.data._base import ImageSpec, LabelledTextSpec, Spec, TextSpec
from kdkit.errors import ConfigError
from kdkit.features.taps import unwrap
from kdkit.models._build import Origin, origin_of, quiet_transformers
from kdkit.models._network import Network, VisionNetwork
from kdkit.models._texts import TextNetwork
from kdkit.models.sentence_encoders import SentenceEncoder

__all__ = ["export_student"]

WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"
NOTE = "kdkit.json"


def export_student(
    network: Network,
    folder: str | Path,
    *,
    spec: Spec,
    example: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a network for use without kdkit; the folder appears whole or not at all.

    A model of timm becomes ``config.json`` and ``model.safetensors`` for ``timm.create_model("local-dir:...")``; a
    model of transformers what ``from_pretrained`` reads, with tokenizer or image processor, adapters merged; any
    other image classifier ``model.safetensors`` and ``model.pt2``, a ``torch.export`` program with the
    normalisation inside. A module that ``torch.export`` can not trace leaves its weights alone.

    Args:
        network: the student; untouched.
        folder: made, or replaced if it is an earlier export.
        spec: of the data; names of classes and the tokenizer go along.
        example: inputs of the network for one batch, as :meth:`~kdkit.tasks.Task.inputs` gives them.
        metadata: JSON-able facts, kept in ``kdkit.json``.

    Returns:
        ``format`` (``"timm"``, ``"transformers"``, ``"torch.export"`` or ``"weights"``), ``files`` (names and
        sizes in bytes), ``bytes`` (of the weights) and ``snippet``: Python that loads the network.

    Raises:
        ConfigError: if the folder holds something else than an earlier export.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NOTE).is_file():
        raise ConfigError(f"{folder} holds other files, and an export replaces its folder; choose an empty one")
    module = unwrap(network.module)
    training = network.training
    network.eval()
    try:
        with atomic_dir(folder, existing="replace") as target:
            form, snippet = _write(network, module, target, spec, example)
            note = {"format": form, "network": network.name, **dict(metadata or {})}
            (target / NOTE).write_text(to_json(note, indent=2) + "\n", encoding="utf-8")
            sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    finally:
        network.train(training)
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    return {"format": form, "files": sizes, "bytes": weights, "snippet": f'folder = "{folder.as_posix()}"\n{snippet}'}


def _write(
    network: Network, module: nn.Module, target: Path, spec: Spec, example: Mapping[str, Tensor]
) -> tuple[str, str]:
    origin = origin_of(module)
    if callable(getattr(module, "save_pretrained", None)):
        return "transformers", _write_transformers(network, module, target, spec)
    if origin is not None and origin.library == "timm" and isinstance(spec, ImageSpec):
        assert isinstance(network, VisionNetwork)
        snippet = _write_timm(network, module, origin, target, spec)
        if snippet is not None:
            return "timm", snippet
    _save_weights(module, target / WEIGHTS)
    if isinstance(network, VisionNetwork):
        snippet = _write_program(network, target, example["image"])
        if snippet is not None:
            return "torch.export", snippet
    return "weights", (
        "from safetensors.torch import load_file\n"
        f"model = ...  # build your own {type(module).__name__} here\n"
        f'model.load_state_dict(load_file(f"{{folder}}/{WEIGHTS}"))\n'
    )


def _save_weights(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_model

    save_model(module, str(path), metadata={"format": "pt"})


def _statistics(network: VisionNetwork, channels: int) -> tuple[list[float], list[float]]:
    mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
    repeat = channels if len(mean) == 1 else 1
    return mean * repeat, std * repeat


def _write_timm(network: VisionNetwork, module: nn.Module, origin: Origin, target: Path, spec: ImageSpec) -> str | None:
    """The files of a timm model, or ``None`` if timm would not build the same network from them."""
    import timm

    known: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    mean, std = _statistics(network, spec.in_chans)
    side = network.input_size or spec.image_size
    kept = ("first_conv", "classifier", "pool_size", "fixed_input_size", "license")
    preprocessing = {
        **{key: known[key] for key in kept if known.get(key) is not None},
        "num_classes": spec.num_classes,
        "input_size": [spec.in_chans, side, side],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": mean,
        "std": std,
    }
    config = {
        "architecture": origin.architecture,
        "num_classes": spec.num_classes,
        "num_features": getattr(module, "num_features", None),
        "pretrained_cfg": preprocessing,
        "model_args": origin.arguments,
    }
    if spec.class_names:
        config["label_names"] = list(spec.class_names)
    _save_weights(module, target / WEIGHTS)
    try:
        (target / "config.json").write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
        with torch.random.fork_rng():  # building a network draws weights
            timm.create_model(f"local-dir:{target.as_posix()}", pretrained=True)
    except Exception:  # options that the configuration can not carry; the network is written in another form then
        (target / "config.json").unlink(missing_ok=True)
        return None
    return (
        "import timm\n"
        'model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()\n'
        "config = timm.data.resolve_model_data_config(model)  # mean, std, input_size\n"
        "transform = timm.data.create_transform(**config, is_training=False)\n"
    )


class _Classifier(nn.Module):
    """Images in [0, 1] to logits, as one program."""

    def __init__(self, network: VisionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.call({"image": image})


def _write_program(network: VisionNetwork, target: Path, image: Tensor) -> str | None:
    """``model.pt2``, for any batch size if the module allows it, else for one image; ``None`` if it allows neither."""
    classifier = _Classifier(copy.deepcopy(network)).cpu().eval()
    image = image[:1].detach().cpu()
    batch = torch.export.Dim("batch")
    size = "[N, " + ", ".join(str(n) for n in image.shape[1:]) + "]"
    variants: list[tuple[Tensor, Any, str]] = [
        (image.repeat(2, 1, 1, 1), {"image": {0: batch}}, size),
        (image, None, size.replace("N", "1", 1)),
    ]
    for inputs, dynamic, shape in variants:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(classifier, (inputs,), dynamic_shapes=dynamic)
                torch.export.save(program, target / PROGRAM)
        except Exception:  # what a module of the user's own does may not be traceable; then its weights remain
            continue
        return (
            "import torch\n"
            f'model = torch.export.load(f"{{folder}}/{PROGRAM}").module()\n'
            f"# logits = model(images), images float32 {shape} in [0, 1]\n"
        )
    return None


def _write_transformers(network: Network, module: nn.Module, target: Path, spec: Spec) -> str:
    if hasattr(module, "merge_and_unload"):  # LoRA: one plain network, the adapters merged into it
        merge: Callable[[], nn.Module] = copy.deepcopy(module).merge_and_unload  # type: ignore[assignment]
        module = merge()
    save: Callable[..., Any] = module.save_pretrained  # type: ignore[assignment]
    with quiet_transformers():
        save(target)
    if isinstance(spec, TextSpec):
        ids = {"bos_token_id": spec.bos_token_id, "eos_token_id": spec.eos_token_id, "pad_token_id": spec.pad_token_id}
        for name in ("config.json", "generation_config.json"):
            _edit(target / name, ids)
        if spec.tokenizer is None:
            return _TEXT_LINES[0] + _TEXT_LINES[2]
        spec.tokenizer.save_pretrained(target)
        return "".join(_TEXT_LINES)
    if spec.class_names:
        labels = {str(index): name for index, name in enumerate(spec.class_names)}
        _edit(target / "config.json", {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}})
    if isinstance(spec, LabelledTextSpec):
        return _write_texts(network, target, spec)
    assert isinstance(network, VisionNetwork)
    mean, std = _statistics(network, spec.in_chans)
    side = network.input_size or spec.image_size
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (target / "preprocessor_config.json").write_text(to_json(processor, indent=2) + "\n", encoding="utf-8")
    return (
        "from transformers import AutoImageProcessor, AutoModelForImageClassification\n"
        "processor = AutoImageProcessor.from_pretrained(folder)\n"
        "model = AutoModelForImageClassification.from_pretrained(folder).eval()\n"
    )


def _write_texts(network: Network, target: Path, spec: LabelledTextSpec) -> str:
    """The tokenizer beside the weights; it gives what the network takes and no more."""
    _edit(target / "config.json", {"pad_token_id": spec.pad_token_id})
    encodes = isinstance(unwrap(network.module), SentenceEncoder)
    auto = "AutoModel" if encodes else "AutoModelForSequenceClassification"
    load = "model = {}.from_pretrained(folder).eval()\n"
    if spec.tokenizer is None:
        return f"from transformers import {auto}\n{load.format(auto)}"
    tokenizer = copy.deepcopy(spec.tokenizer)
    kinds = ["token_type_ids"] if isinstance(network, TextNetwork) and network.kinds else []
    tokenizer.model_input_names = ["input_ids", *kinds, "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    tokenizer.model_max_length = spec.context
    tokenizer.save_pretrained(target)
    lines = f"from transformers import {auto}, AutoTokenizer\ntokenizer = AutoTokenizer.from_pretrained(folder)\n"
    if encodes:
        return f"{lines}{load.format(auto)}{_POOLING}"
    return (
        f"{lines}{load.format(auto)}"
        '# logits = model(**tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")).logits\n'
    )


_POOLING = (
    '# x = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")\n'
    "# states, mask = model(**x).last_hidden_state, x.attention_mask[..., None]\n"
    "# vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)\n"
)

_TEXT_LINES = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
    "tokenizer = AutoTokenizer.from_pretrained(folder)\n",
    "model = AutoModelForCausalLM.from_pretrained(folder).eval()\n",
)


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(to_json({**content, **changes}, indent=2) + "\n", encoding="utf-8")
