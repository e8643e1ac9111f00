"""Running sums on the device and a clock that knows what it measures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["Meter"]


class Meter:
    """Collects losses, terms, throughput and the teacher's share of the time between two log records.

    Sums stay on the device; only :meth:`record` and :meth:`non_finite` wait for it.

    Args:
        accelerator: device and ranks.
        has_teacher: whether there is a frozen teacher to account for.
    """

    def __init__(self, accelerator: Accelerator, *, has_teacher: bool) -> None:
        self.accelerator = accelerator
        self.has_teacher = has_teacher
        self.cuda = accelerator.device.type == "cuda"
        self.seconds_before = 0.0
        self.teacher_before = 0.0
        self._begin = time.perf_counter()
        self._pause = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._teacher_total = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        self._steps = 0
        self._units = 0
        self._teacher_seconds = 0.0
        self._mark = time.perf_counter() - self._pause

    def start(self, seconds_before: float = 0.0) -> None:
        """Start the clock, on top of the seconds of earlier parts of a resumed run."""
        self.seconds_before = seconds_before
        self._begin = time.perf_counter()
        self._pause = 0.0
        self._reset()

    @property
    def seconds(self) -> float:
        """Training time so far, without pauses (evaluation, checkpoints)."""
        return self.seconds_before + time.perf_counter() - self._begin - self._pause

    @property
    def pause(self) -> float:
        """Seconds of pauses so far."""
        return self._pause

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training."""
        if self.cuda:
            torch.cuda.synchronize(self.accelerator.device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._pause += time.perf_counter() - begin

    @contextmanager
    def teacher(self) -> Iterator[None]:
        """Time inside is the teacher's; on CUDA measured by events, without waiting."""
        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            started = time.perf_counter()
            yield
            self._teacher_seconds += time.perf_counter() - started

    def add(self, loss: Tensor, terms: Mapping[str, Tensor], units: int) -> None:
        """Take in one micro-batch, whose terms are shares of the step's means."""
        value = loss.detach()
        self._loss = value if self._loss is None else self._loss + value
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._units += units

    def count_step(self) -> None:
        """An optimizer step is complete."""
        self._steps += 1

    def non_finite(self) -> list[str]:
        """Names of terms (or ``total``) that turned NaN or infinite since the last record, on any rank."""
        if self._loss is None:
            return []
        names = [*self._sums, "total"]
        values = torch.stack([*(value.float() for value in self._sums.values()), self._loss.float()])
        bad = (~torch.isfinite(values)).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        flagged = [name for name, flag in zip(names, bad.tolist(), strict=True) if flag > 0]
        return [name for name in flagged if name != "total"] or flagged

    def record(self) -> dict[str, Any]:
        """Means over the optimizer steps since the last record, and a fresh start."""
        assert self._loss is not None
        elapsed = max(time.perf_counter() - self._pause - self._mark, 1e-9)
        values = torch.stack([self._loss.float(), *(value.float() for value in self._sums.values())])
        units = torch.tensor(float(self._units), device=values.device)
        if self.accelerator.num_processes > 1:
            values, units = self.accelerator.reduce(values, "sum"), self.accelerator.reduce(units, "sum")
        loss, *terms = (values / max(self._steps, 1)).tolist()
        if self._events:
            torch.cuda.synchronize(self.accelerator.device)
            self._teacher_seconds = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000.0
            self._events.clear()
        self._teacher_total += self._teacher_seconds
        record = {
            "time": self.seconds,
            "loss": loss,
            "terms": dict(zip(self._sums, terms, strict=True)),
            "throughput": float(units) / elapsed,
            "teacher_share": self._teacher_seconds / elapsed if self.has_teacher else None,
        }
        self._reset()
        return record

    @property
    def teacher_share(self) -> float | None:
        """Share of all the training time spent in the teacher, ``None`` without one."""
        return self.teacher_spent / self.seconds if self.has_teacher and self.seconds > 0 else None

    @property
    def teacher_spent(self) -> float:
        """Seconds in the teacher up to the last record, earlier parts of a resumed run included."""
        return self.teacher_before + self._teacher_total
