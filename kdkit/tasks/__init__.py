"""Tasks: the only places that know the modality."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdkit.tasks._base import Metrics, Task
    from kdkit.tasks._strategy import Strategy
    from kdkit.tasks.causal_lm import CausalLM
    from kdkit.tasks.classification import Classification
    from kdkit.tasks.embedding import Embedding
    from kdkit.tasks.sequence_classification import SequenceClassification
    from kdkit.tasks.written_text import WrittenText

_EXPORTS = {
    "CausalLM": "causal_lm",
    "Classification": "classification",
    "Embedding": "embedding",
    "Metrics": "_base",
    "SequenceClassification": "sequence_classification",
    "Strategy": "_strategy",
    "Task": "_base",
    "WrittenText": "written_text",
}

__all__ = [
    "CausalLM",
    "Classification",
    "Embedding",
    "Metrics",
    "SequenceClassification",
    "Strategy",
    "Task",
    "WrittenText",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
