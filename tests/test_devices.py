"""Worker processes and GPUs."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from kdkit._config.context import Context
from kdkit._run import cells
from kdkit._run.board import worker_count
from kdkit._run.cells import Cell, Crew
from kdkit._run.devices import gpus_of_workers, visible_gpus


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``gpus(count, visible)`` makes torch see so many."""

    def make(count: int, visible: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [
        (0, None, [None] * 5),
        (1, None, ["0"] * 5),
        (4, None, ["0", "1", "2", "3", "0"]),
        (2, "5, 7", ["5", "7", "5", "7", "5"]),
        (2, "GPU-a,GPU-b", ["GPU-a", "GPU-b", "GPU-a", "GPU-b", "GPU-a"]),
        (1, "3,-1,2", ["3"] * 5),
    ],
)
def test_workers_take_the_gpus_in_turn(gpus: Any, count: int, visible: str | None, expected: list[str | None]) -> None:
    gpus(count, visible)
    assert gpus_of_workers(5) == expected
    assert len(visible_gpus()) == count


@pytest.mark.parametrize(
    ("count", "device", "threads", "expected"),
    [(4, "auto", None, 4), (4, "cuda", 2, 4), (1, "auto", None, 1), (4, "cpu", None, 6), (0, "auto", 2, 1)],
)
def test_auto_is_a_worker_per_gpu_or_per_core(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, count: int, device: str, threads: int | None, expected: int
) -> None:
    gpus(count)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    settings = {"workers": "auto", "engine": {"device": device, "threads": threads}}
    assert worker_count(OmegaConf.create(settings)) == expected


def seen(cell: Cell, context: Context) -> dict[str, Any]:
    """What a worker sees."""
    return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}


@pytest.mark.slow
def test_each_worker_process_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "gpus_of_workers", lambda workers: ["1", "3"][:workers])
    todo = [Cell(str(number), number, {}, "") for number in range(12)]
    with Crew(Context("compare"), 2) as crew:
        rounds = [list(crew.run(todo, seen)) for _ in range(2)]
    by_process = {record["process"]: record["gpu"] for records in rounds for record in records}
    assert os.getpid() not in by_process and len(by_process) <= 2
    assert len(set(by_process.values())) == len(by_process) and set(by_process.values()) <= {"1", "3"}
    assert all(by_process[record["process"]] == record["gpu"] for records in rounds for record in records)
