"""Which mean and standard deviation a network's input is normalised with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kdkit.data._base import ImageSpec
from kdkit.errors import ConfigError
from kdkit.models._build import origin_of

__all__ = ["resolve_normalization"]

Statistics = tuple[tuple[float, ...] | None, tuple[float, ...] | None]


def resolve_normalization(
    module: nn.Module, spec: ImageSpec, setting: str | Mapping[str, Sequence[float]] | None = None
) -> Statistics:
    """Mean and standard deviation per channel, or ``(None, None)`` for no normalisation.

    Args:
        module: the network; one with pretrained weights knows what they expect.
        spec: the data.
        setting: ``None``: the network's own if it has pretrained weights, else the data's; ``"model"``, ``"data"``
            or ``"none"`` to insist on one; or a mapping with ``mean`` and ``std``.

    Raises:
        ConfigError: for an unknown word, ``"model"`` for a network without statistics, or numbers that do not fit
            the channels.
    """
    origin = origin_of(module)
    own: Statistics = (None, None) if origin is None else (origin.mean, origin.std)
    if isinstance(setting, Mapping):
        given = _numbers("mean", setting.get("mean"), spec), _numbers("std", setting.get("std"), spec)
        if min(given[1]) <= 0:
            raise ConfigError(f"normalization: std must be positive, got {list(given[1])}")
        return given
    if setting == "none":
        return None, None
    if setting == "data":
        return spec.mean, spec.std
    if setting == "model" and own[0] is None:
        raise ConfigError(
            f"normalization: 'model' needs a network with pretrained weights, {type(module).__name__} has none; "
            "use 'data', 'none' or {mean: [...], std: [...]}"
        )
    if setting not in (None, "model"):
        raise ConfigError(
            f"normalization: must be null, 'model', 'data', 'none' or {{mean: [...], std: [...]}}, got {setting!r}"
        )
    if own[0] is None or own[1] is None:
        return spec.mean, spec.std
    if len(own[0]) != spec.in_chans:  # pretrained weights adapted to another number of channels
        return tuple([sum(own[0]) / len(own[0])] * spec.in_chans), tuple([sum(own[1]) / len(own[1])] * spec.in_chans)
    return own


def _numbers(name: str, values: Any, spec: ImageSpec) -> tuple[float, ...]:
    ok = isinstance(values, Sequence) and not isinstance(values, str) and len(values) in (1, spec.in_chans)
    if not ok:
        raise ConfigError(f"normalization: {name} must be a list of {spec.in_chans} numbers, got {values!r}")
    numbers = tuple(float(value) for value in values)
    return numbers * (spec.in_chans if len(numbers) == 1 else 1)
