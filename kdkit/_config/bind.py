"""Do the arguments of a block fit the signature of its ``_target_``? Found out without calling anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdkit._config.build import RESERVED
from kdkit._config.trust import locate
from kdkit.errors import ConfigError, did_you_mean

__all__ = ["Call", "bind", "blocks"]


@dataclass(frozen=True, slots=True)
class Call:
    """What kdkit itself passes when it calls a target.

    Attributes:
        args: names of the positional arguments, for messages; they fill the first parameters.
        offer: keyword arguments that are passed if the target takes them.
    """

    args: tuple[str, ...] = ()
    offer: tuple[str, ...] = ()


def blocks(value: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_`` at or below ``path``, outermost first."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield path, value
        for key, item in value.items():
            yield from blocks(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from blocks(item, f"{path}[{place}]")


def bind(path: str, block: Mapping[str, Any], call: Call = Call()) -> Callable[..., Any]:
    """Locate the target of a block and compare the block's keys with its signature.

    Args:
        path: where the block stands, e.g. ``"student.model"``.
        block: plain settings.
        call: what kdkit adds.

    Returns:
        The target.

    Raises:
        ConfigError: naming the block, the argument, its value and the closest names.
    """
    name = block["_target_"]
    target = locate(name, where=path)
    try:
        parameters = inspect.signature(target).parameters
    except (ValueError, TypeError):
        return target
    given = {key: value for key, value in block.items() if key not in RESERVED}
    taken, rest = _positional(path, name, parameters, call, len(block.get("_args_", [])))
    for key, value in given.items():
        if key in taken:
            raise ConfigError(f"{path}.{key} is passed by kdkit itself; leave it out (got {value!r})")
        if key not in rest:
            raise ConfigError(f"{path}: {name} takes no argument {key!r} (= {value!r}){_others(key, rest)}")
    if not block.get("_partial_", False):
        missing = [key for key, needed in rest.items() if needed and key not in given and key not in call.offer]
        if missing:
            raise ConfigError(f"{path}: {name} needs the argument {missing[0]!r}; add +{path}.{missing[0]}=…")
    return target


class _Anything(dict[str, bool]):
    """Parameters by name of a callable with ``**options``: every name is one."""

    def __contains__(self, key: object) -> bool:
        return True


def _positional(
    path: str, name: str, parameters: Mapping[str, inspect.Parameter], call: Call, extra: int
) -> tuple[set[str], dict[str, bool]]:
    """Names that the positional arguments fill, and the others with whether they are required."""
    kinds = inspect.Parameter
    order = [p for p in parameters.values() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is kinds.VAR_POSITIONAL for p in parameters.values())
    filled = len(call.args) + extra
    if filled > len(order) and not many:
        passed = f"kdkit passes {', '.join(call.args)}" if call.args else f"_args_ holds {extra}"
        raise ConfigError(f"{path}: {name} takes {len(order)} positional arguments, but {passed}")
    taken = {p.name for p in order[:filled]}
    named = [p for p in parameters.values() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    rest = {p.name: p.default is p.empty for p in named if p.name not in taken}
    open_ended = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    return taken, _Anything(rest) if open_ended else rest


def _others(key: str, rest: Mapping[str, bool]) -> str:
    return did_you_mean(key, rest) if rest else "; it takes none"
