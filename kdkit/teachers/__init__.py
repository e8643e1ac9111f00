"""Teachers: they answer batches without a gradient, whatever stands behind them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdkit.teachers._base import Teacher
    from kdkit.teachers._class_means import class_means
    from kdkit.teachers.cached import CachedTeacher
    from kdkit.teachers.ema import EMATeacher
    from kdkit.teachers.ensemble import EnsembleTeacher
    from kdkit.teachers.live import LiveTeacher
    from kdkit.teachers.routed import RoutedTeacher
    from kdkit.teachers.served import ServedTeacher
    from kdkit.teachers.store import Store

_EXPORTS = {
    "CachedTeacher": "cached",
    "EMATeacher": "ema",
    "EnsembleTeacher": "ensemble",
    "LiveTeacher": "live",
    "RoutedTeacher": "routed",
    "ServedTeacher": "served",
    "Store": "store",
    "Teacher": "_base",
    "class_means": "_class_means",
}

__all__ = [
    "CachedTeacher",
    "EMATeacher",
    "EnsembleTeacher",
    "LiveTeacher",
    "RoutedTeacher",
    "ServedTeacher",
    "Store",
    "Teacher",
    "class_means",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
