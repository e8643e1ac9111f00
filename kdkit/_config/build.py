"""Building what a block of settings describes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf

from kdkit._config.trust import locate
from kdkit.errors import ConfigError, KdkitError

__all__ = ["RESERVED", "instantiate", "plain"]

RESERVED = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})
"""Keys of a block that are instructions and no arguments."""


def plain(block: Any) -> Any:
    """Settings as plain dicts and lists, references resolved."""
    return OmegaConf.to_container(block, resolve=True) if OmegaConf.is_config(block) else block


def instantiate(
    block: Any, *args: Any, where: str = "settings", offer: Mapping[str, Any] | None = None, **kwargs: Any
) -> Any:
    """Call the ``_target_`` of a block with the block's other keys, after building the blocks inside it.

    Unlike ``hydra.utils.instantiate`` it calls trusted targets only (:func:`kdkit._config.trust.locate`), and what
    the caller adds is passed on untouched, never copied into settings.

    Args:
        block: a mapping with ``_target_``; ``None`` gives ``None``.
        args: passed first, before the block's own ``_args_``.
        where: where the block stands, for messages: ``"optim"``, ``"student.model"``.
        offer: keyword arguments that are passed only if the target takes them and the block does not set them.
        kwargs: keyword arguments on top of the block's.

    Raises:
        ConfigError: if the target is unknown or untrusted, or fails with anything but an error of kdkit's own.
    """
    block = plain(block)
    if block is None:
        return None
    if not isinstance(block, Mapping) or "_target_" not in block:
        raise ConfigError(f"{where} must be a block with a _target_, got {block!r}")
    return _call(block, where, args, offer or {}, kwargs)


def _build(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _call(value, where, (), {}, {})
        return {key: _build(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_build(item, f"{where}[{place}]") for place, item in enumerate(value)]
    return value


def _call(
    block: Mapping[str, Any], where: str, args: tuple[Any, ...], offer: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> Any:
    target = locate(block["_target_"], where=where)
    options = {key: value for key, value in block.items() if key not in RESERVED}
    positional = block.get("_args_", [])
    if block.get("_recursive_", True):
        options = {key: _build(value, f"{where}.{key}") for key, value in options.items()}
        positional = _build(list(positional), where)
    options = {**accepted(target, offer), **options, **kwargs}
    if block.get("_partial_", False):
        return functools.partial(target, *args, *positional, **options)
    try:
        return target(*args, *positional, **options)
    except KdkitError:
        raise
    except Exception as error:
        name = f"{type(error).__name__}: " if not isinstance(error, TypeError | ValueError) else ""
        raise ConfigError(f"{where}: {block['_target_']} failed: {name}{' '.join(str(error).split())}") from error


def accepted(target: Callable[..., Any], offer: Mapping[str, Any]) -> dict[str, Any]:
    """The offered arguments that a callable names in its signature."""
    if not offer:
        return {}
    parameters = inspect.signature(target).parameters
    return {key: value for key, value in offer.items() if key in parameters}
