"""The cells of a comparison: one method with one seed each, here or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kdkit._files import read_jsonl, sha256_json
from kdkit._run.devices import gpus_of_workers
from kdkit.errors import KdkitError

if TYPE_CHECKING:
    from kdkit._config.context import Context
    from kdkit._run.build import Scene

__all__ = ["Cell", "Crew", "RunCell", "run_cell", "run_cells", "run_trial", "scene_of"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of a comparison.

    Attributes:
        method: name on the leaderboard.
        seed: seed of weights, order and augmentation.
        settings: the composed settings as plain containers.
        folder: where its records go.
    """

    method: str
    seed: int
    settings: dict[str, Any]
    folder: str

    @property
    def name(self) -> str:
        """Method and seed."""
        return f"{self.method}, seed {self.seed}"

    def config(self) -> DictConfig:
        """The settings as Hydra users know them."""
        return OmegaConf.create(self.settings)


_scenes: dict[str, Scene] = {}


def scene_of(cfg: DictConfig) -> Scene:
    """Data, task and accelerator of a cell; loaded once per process for cells that share them."""
    from kdkit._run.build import Scene, make_accelerator, set_scene
    from kdkit._run.tokenizers import settle_teacher

    key = sha256_json(OmegaConf.to_container(OmegaConf.create({"data": cfg.data, "task": cfg.task}), resolve=True))
    if key not in _scenes:
        _scenes.clear()  # data may be large: hold one set at a time
        _scenes[key] = set_scene(cfg, make_accelerator(cfg))
    known = _scenes[key]
    cfg.spec = known.cfg.spec
    settle_teacher(cfg, known.data)
    return Scene(cfg, known.data, known.task, known.accelerator)


def run_cell(cell: Cell, context: Context) -> dict[str, Any]:
    """Train and measure one cell; a failure comes back as a record, not as an exception."""
    return _record(cell, context, measured=True)


def run_trial(cell: Cell, context: Context) -> dict[str, Any]:
    """Train one cell and validate it; the test split is not touched."""
    return _record(cell, context, measured=False)


def _record(cell: Cell, context: Context, *, measured: bool) -> dict[str, Any]:
    begin = time.perf_counter()
    record: dict[str, Any] = {"method": cell.method, "seed": cell.seed, "run_dir": cell.folder}
    record["losses"] = [str(name) for name in cell.settings["loss"]]
    try:
        record |= {"status": "ok", "error": None, **_train(cell, context, measured)}
    except Exception as error:
        Path(cell.folder).mkdir(parents=True, exist_ok=True)
        (Path(cell.folder) / "traceback.txt").write_text(traceback.format_exc())
        text = str(error) if isinstance(error, KdkitError) else f"{type(error).__name__}: {error}"
        record |= {"status": "failed", "error": text, "metrics": {}, "validation": {}, "seconds": None}
        record["kind"] = type(error).__name__
    return {**record, "wall": time.perf_counter() - begin}


def _train(cell: Cell, context: Context, measured: bool) -> dict[str, Any]:
    from kdkit._config.safety import trust_of
    from kdkit._run.distill import distill_networks
    from kdkit._run.finish import distilled_rows, finish
    from kdkit._run.session import open_session

    cfg, folder = cell.config(), Path(cell.folder)
    with (
        trust_of(context),
        open_session(cfg, context, tag=cell.method, scene=scene_of(cfg), folder=folder) as session,
    ):
        distilled = distill_networks(session)
        metrics: dict[str, float] = {}
        if measured:
            rows = distilled_rows(session, distilled)
            finish(session, "distill", distilled.student, distilled.fit, rows)
            metrics = rows[-1].metrics
    fit, lines = distilled.fit, _lines(folder)
    evaluations = [line for line in lines if line.get("split") == "val"]
    chosen = [line["metrics"] for line in evaluations if line["step"] == fit.selected_step]
    return {
        "metrics": metrics,
        "validation": dict(chosen[-1] if chosen else fit.validation),
        "seconds": fit.seconds,
        "steps": fit.steps,
        "step_seconds": _step_seconds(lines) or fit.seconds / fit.steps,
        "validating": fit.paused / max(len(evaluations), 1),
    }


def _lines(folder: Path) -> list[dict[str, Any]]:
    """What was recorded of the student."""
    lines = read_jsonl(folder / "metrics.jsonl")
    return [line for line in lines if line.get("network", "student") == "student"]


def _step_seconds(lines: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of a step, the first ones left out, which are slower."""
    logged = [(line["step"], line["time"]) for line in lines if line.get("event") == "train"]
    if len(logged) < 2 or logged[-1][0] == logged[0][0]:
        return None
    return (logged[-1][1] - logged[0][1]) / (logged[-1][0] - logged[0][0])


RunCell = Callable[[Cell, "Context"], dict[str, Any]]
"""``run(cell, context)``: the record of a cell, a failure included."""


def _start_worker(threads: int, gpus: SimpleQueue[str | None]) -> None:
    import signal

    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before anything of CUDA is touched
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A killed main process cannot stop its workers, and a worker that waits for its next cell waits for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Crew:
    """Worker processes that stay for several rounds of cells; with one worker the cells run in this process.

    Where there are GPUs, each worker sees one of them, in turn.

    Args:
        context: how the command was called.
        workers: processes.
    """

    def __init__(self, context: Context, workers: int) -> None:
        self.context, self.workers = context, workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        if self.workers > 1:
            threads = max((os.cpu_count() or 1) // self.workers, 1)
            spawning = multiprocessing.get_context("spawn")
            gpus: SimpleQueue[str | None] = spawning.SimpleQueue()
            for gpu in gpus_of_workers(self.workers):
                gpus.put(gpu)
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=spawning, initializer=_start_worker, initargs=(threads, gpus)
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if kind is not None:
            processes = list((getattr(pool, "_processes", None) or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
        pool.shutdown()

    def run(self, cells: Iterable[Cell], run: RunCell = run_cell) -> Iterator[dict[str, Any]]:
        """Records as they are finished; a cell is asked for when a worker is free for it."""
        if self._pool is None:
            for cell in cells:
                yield run(cell, self.context)
            return
        waiting, running = iter(cells), set[Future[dict[str, Any]]]()
        while True:
            for cell in islice(waiting, self.workers - len(running)):
                running.add(self._pool.submit(run, cell, self.context))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def run_cells(
    cells: Sequence[Cell], context: Context, workers: int, run: RunCell = run_cell
) -> Iterator[dict[str, Any]]:
    """Records of all cells, as they are finished; ``run`` makes one, in a process of its own if there are several."""
    with Crew(context, workers) as crew:
        yield from crew.run(cells, run)
