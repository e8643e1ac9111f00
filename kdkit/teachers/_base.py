"""What the loop asks of a teacher: outputs for a batch, whatever stands behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from kdkit.data._base import Batch
from kdkit.outputs import ModelOutput

__all__ = ["Teacher"]


class Teacher(ABC):
    """Answers batches without a gradient. Not an ``nn.Module`` on purpose: it can enter neither the student's
    ``state_dict``, nor an optimizer, nor a DDP wrapper, and nobody can put it into training mode."""

    live: ClassVar[bool] = True
    """Whether other splits than the training one are measured against it: not where it was asked about that one alone,
    nor where each answer has to be fetched."""

    may_fail: ClassVar[bool] = False
    """Whether an answer may fail to come for reasons outside the run, as :class:`~kdkit.errors.ServerError` says; it is
    then asked before anything of a step has happened."""

    @property
    def origin(self) -> str | None:
        """Where its answers come from, in words, if not from networks of this run."""
        return None

    @abstractmethod
    def __call__(self, batch: Batch) -> ModelOutput:
        """Outputs for a batch, computed in evaluation mode under ``torch.no_grad``."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What this teacher is (architecture and weights), as a SHA-256; caches and class means are keyed to it."""

    @abstractmethod
    def tap(self, layers: Mapping[str, str]) -> None:
        """Record these layers (pair name -> layer name) in every answer."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Teacher:
        """Move what there is to move."""
        return self

    def compile(self, **options: object) -> None:  # noqa: B027 - a cached teacher has nothing to compile
        """Compile what there is to compile with ``torch.compile``."""
