"""Weight files: safetensors are read, pickles are refused and can be converted once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import CheckpointError
from kdkit.features.taps import unwrap
from kdkit.models._build import quiet_transformers

__all__ = ["convert_pickle", "load_weights", "read_weights"]

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar"}
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fill a network with the weights of a safetensors file, or of a folder that holds one.

    Names and shapes must all agree; nothing is changed if they do not.

    Args:
        module: the network.
        path: a ``.safetensors`` file; a folder with ``model.safetensors``, with shards and their index as
            transformers writes them, or with one ``.safetensors`` file; or a run folder with ``student/``.

    Raises:
        CheckpointError: if the file is missing, damaged, a pickle, or does not belong to this network.
    """
    module = unwrap(module)
    module = module.get_base_model() if hasattr(module, "peft_config") else module  # type: ignore[operator]
    own = {_bare(name): value for name, value in module.state_dict().items() if ".lora_" not in name}
    weights = _read_transformers(module, Path(path))
    weights = read_weights(path) if weights is None else weights
    loaded = {own[name].data_ptr() for name in weights if name in own}
    missing = [name for name in own if name not in weights and own[name].data_ptr() not in loaded]
    unexpected = [name for name in weights if name not in own]
    what = f"the weights in {path} do not belong to this {type(module).__name__}"
    if missing or unexpected:
        parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        parts += [f"{len(unexpected)} not known ({_some(unexpected)})"] if unexpected else []
        raise CheckpointError(f"{what}: {' and '.join(parts)}; build the network that they were saved from")
    shapes = {name: (value.shape, own[name].shape) for name, value in weights.items()}
    wrong = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if wrong:
        name = max(wrong, key=lambda key: len(wrong[key][0]))
        raise CheckpointError(
            f"{what}: '{name}' is {list(wrong[name][0])} in the file and {list(wrong[name][1])} in the network; "
            f"{_shape_advice(list(wrong.values()))}"
        )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def _bare(name: str) -> str:
    """The name of a weight before an adapter was put around its layer."""
    return name.replace(".base_layer.", ".")


def _read_transformers(module: nn.Module, path: Path) -> dict[str, Tensor] | None:
    """Weights in a folder of transformers, by the names that its current version uses; ``None`` for other folders."""
    folder = path if path.is_dir() else path.parent
    folder = folder if (folder / "config.json").is_file() else folder / "student"
    loader = getattr(type(module), "from_pretrained", None)
    if loader is None or not hasattr(module, "config") or not (folder / "config.json").is_file():
        return None
    _files(path)  # refuses what is missing or a pickle
    try:
        with quiet_transformers():
            loaded, report = loader(folder, output_loading_info=True)
    except Exception as error:  # damaged files and foreign configurations fail in many ways
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder} can not be read by transformers ({reason}); save or copy it again") from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    if wrong:
        raise CheckpointError(
            f"the weights in {folder} do not fit the config.json beside them ({_some(sorted(wrong))}); copy both again"
        )
    state: dict[str, Tensor] = loaded.state_dict()
    return state


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shape_advice(wrong: list[tuple[torch.Size, torch.Size]]) -> str:
    outputs = {saved[:1] for saved, _ in wrong}
    if len(outputs) == 1 and all(len(saved) and saved[1:] == own[1:] for saved, own in wrong):
        return f"it was saved for {wrong[0][0][0]} outputs, so set num_classes (or vocab_size) to that"
    return "build the network with the sizes that it was saved with"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file or folder, on the CPU.

    Raises:
        CheckpointError: if there is none, or it is damaged, or a pickle.
    """
    path = Path(path)
    files = _files(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"the weight file {file} is damaged ({error}); save or copy it again") from error
    return weights


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CheckpointError(f"there is no weight file {path}; give an existing .safetensors file or its folder")
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(
                f"{path} is a pickle, which can run code when it is loaded; convert it once with "
                f"`python -c \"from kdkit.models import convert_pickle; print(convert_pickle('{path}'))\"`"
            )
        return [path]
    for folder in (path, path / "student"):
        if (folder / INDEX).is_file():
            return _shards(folder)
        if (folder / WEIGHTS).is_file():
            return [folder / WEIGHTS]
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
    hint = f"; {pickles[0]} is a pickle, convert it with kdkit.models.convert_pickle" if pickles else ""
    raise CheckpointError(f"{path} holds no {WEIGHTS}{hint or '; name the .safetensors file itself'}")


def _shards(folder: Path) -> list[Path]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is damaged ({error}); copy it again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks the shard {missing[0]} that its index names; copy it as well")
    return [folder / name for name in names]


def convert_pickle(path: str | Path, target: str | Path | None = None) -> Path:
    """Write the tensors of a PyTorch file as safetensors; the file is read with ``weights_only``, so no code runs.

    Args:
        path: a state dict, or a checkpoint that holds one as ``state_dict``, ``model`` or ``state_dict_ema``;
            a leading ``module.`` of names is dropped.
        target: file to write; the same name with ``.safetensors`` if ``None``.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: if the file is missing, needs code to load, or holds no tensors.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path} to convert")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are damaged or hold more than tensors
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} can not be read without running its code ({reason}); save only module.state_dict() there"
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Tensor):
            tensors[str(name).removeprefix("module.")] = value.detach().clone().contiguous()
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors by name; save module.state_dict() there")
    target = path.with_suffix(".safetensors") if target is None else Path(target)
    partial = target.with_name(target.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(target)
    return target
