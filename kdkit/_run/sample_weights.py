"""Weights per training sample: balanced over the classes, or out of a file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdkit._files import sha256_file
from kdkit.data._base import DataModule, TextSpec
from kdkit.errors import ConfigError

__all__ = ["identity_of", "load_sample_weights"]

BALANCED = "balanced"
_SUFFIXES = (".npy", ".pt", ".pth", ".safetensors")


def identity_of(setting: str | None) -> dict[str, str]:
    """What goes into the definition of a training: the word, or the hash of the file."""
    if setting is None:
        return {}
    return {"sample_weights": setting if setting == BALANCED else sha256_file(_file(setting))}


def load_sample_weights(setting: str | None, data: DataModule) -> Tensor | None:
    """One float32 weight per training sample, by index.

    Args:
        setting: ``None`` (all alike); ``"balanced"``: ``N / (C n_c)`` for a sample of a class with ``n_c`` of the
            ``N`` labelled samples, where ``C`` classes have any, and 1 for a sample without a label; or a file with
            one number per sample: ``.npy``, ``.safetensors`` or ``.pt`` with a single tensor.
        data: whose training samples they are.

    Raises:
        ConfigError: for a file that is missing, unreadable, or does not fit the data.
    """
    if setting is None:
        return None
    if setting == BALANCED:
        return _balanced(data)
    path = _file(setting)
    weights = torch.as_tensor(_read(path))
    size = data.size("train")
    if weights.shape != (size,) or weights.dtype == torch.bool or weights.is_complex():
        raise ConfigError(
            f"sample_weights must hold one number per training sample, [{size}] for data {data.name!r}, got "
            f"{str(weights.dtype).removeprefix('torch.')} {list(weights.shape)} in {path}"
        )
    weights = weights.float()
    wrong = ~torch.isfinite(weights) | (weights < 0)
    if bool(wrong.any()) or not bool((weights > 0).any()):
        place = int(wrong.nonzero()[0, 0]) if bool(wrong.any()) else 0
        raise ConfigError(
            f"sample_weights must be finite, at least 0 and not all 0, got {float(weights[place])} for sample {place} "
            f"in {path}"
        )
    return weights


def _balanced(data: DataModule) -> Tensor:
    if isinstance(data.spec, TextSpec):
        raise ConfigError("sample_weights=balanced needs class labels, and these texts have none; name a file, or null")
    labels = data.labels("train")
    labelled = labels >= 0
    counts = torch.bincount(labels[labelled], minlength=data.spec.num_classes).float()
    if not bool(labelled.any()):
        raise ConfigError("sample_weights=balanced needs labels and the training split has none; set it to null")
    share = labelled.sum() / ((counts > 0).sum() * counts.clamp(min=1))
    return torch.where(labelled, share[labels.clamp(min=0)], 1.0)


def _file(setting: Any) -> Path:
    if not isinstance(setting, str) or Path(setting).suffix not in _SUFFIXES:
        raise ConfigError(
            f"sample_weights must be null, balanced or a file ({', '.join(_SUFFIXES)}), got {setting!r}; one number "
            "per training sample"
        )
    if not Path(setting).is_file():
        raise ConfigError(f"sample_weights: there is no file {setting}; correct the path")
    return Path(setting)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise ConfigError(f"sample_weights: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    values = list(found.values()) if isinstance(found, dict) else [found]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ConfigError(f"sample_weights: {path} must hold a single tensor, got {len(values)} entries")
    return values[0]
