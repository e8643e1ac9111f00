"""Ctrl-C as a request: finish the step, write a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["InterruptGuard", "Interrupted"]


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; a checkpoint was written."""


class InterruptGuard:
    """Within the context, the first SIGINT or SIGTERM only sets :attr:`requested`; a second SIGINT raises
    ``KeyboardInterrupt`` as usual. Outside the main thread nothing is caught."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
