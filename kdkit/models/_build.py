"""What the builders share: plain arguments out of a recipe, refusals, notes on where a network came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kdkit.errors import ConfigError, did_you_mean

__all__ = ["Origin", "check_options", "construct", "note_origin", "origin_of", "plain", "quiet_transformers"]


@dataclass(frozen=True, slots=True)
class Origin:
    """How a network was built, kept on the module as ``kdkit_origin``; the export needs it.

    Attributes:
        library: ``"timm"``, ``"torchvision"`` or ``"transformers"``.
        architecture: name in that library.
        arguments: keyword arguments that build it again, JSON-able.
        mean: per channel, the input normalisation that its pretrained weights expect; ``None`` without such.
        std: per channel.
        ready: whether the weights are pretrained, classifier included, so that the network may be used as it is.
    """

    library: str
    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    ready: bool = False


def note_origin(module: nn.Module, origin: Origin) -> nn.Module:
    """Remember on a module how it was built."""
    module.kdkit_origin = origin  # type: ignore[assignment]
    return module


def origin_of(module: nn.Module) -> Origin | None:
    """How one of the builders made this module, or ``None`` for a module of the user's own."""
    origin = getattr(module, "kdkit_origin", None)
    return origin if isinstance(origin, Origin) else None


def plain(value: Any) -> Any:
    """Mappings as ``dict`` and sequences as ``list``, recursively: libraries test for these types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def construct(what: str, build: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a library's constructor; what it refuses becomes one sentence."""
    try:
        return build(*args, **kwargs)
    except OSError:  # a file or a network, not an argument
        raise
    except Exception as error:  # libraries refuse arguments in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what} can not be built: {reason}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers inside the block: ours is on the terminal already."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_options(what: str, given: Mapping[str, Any], known: Sequence[str] | set[str]) -> None:
    """Refuse the first option that is not known, with close ones."""
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has no setting '{key}'{did_you_mean(key, known)}")
