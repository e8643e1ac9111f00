"""What a training does to its batches before anything is computed with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from kdkit.data._base import Batch
from kdkit.models._network import Network

__all__ = ["Strategy"]


class Strategy(ABC):
    """Changes training batches: texts that the student or the teacher writes in place of those of the data."""

    needs_teacher: bool = False
    """Whether it asks the teacher, even if no loss does."""

    @abstractmethod
    def check(self, student: Network, teacher: Network | None) -> None:
        """Refuse, with a sentence, networks that this strategy can do nothing with."""

    @abstractmethod
    def __call__(
        self,
        batch: Batch,
        student: Network,
        teacher: Network | None,
        *,
        key: tuple[int, ...],
        rank: int,
        progress: float,
    ) -> Batch:
        """The batch to train on.

        Args:
            batch: of the data.
            student: as it is now.
            teacher: the one network behind a frozen teacher, if there is one.
            key: seed, step and number of the micro-batch; every random decision follows from it.
            rank: of this process. What all ranks must decide alike depends on ``key`` alone.
            progress: share of the training that lies behind.
        """

    def record(self) -> Mapping[str, float]:
        """Numbers for the log, counted since the last call."""
        return {}
