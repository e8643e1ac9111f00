"""The work of ``kdkit compare``: several losses times several seeds, one leaderboard."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from omegaconf import DictConfig

from kdkit._config.methods import method_configs, seed_list
from kdkit._files import append_jsonl, read_jsonl, sha256_json, write_json
from kdkit._run.board import (
    as_started,
    base_facts,
    comparison_folder,
    defining,
    make_cell,
    prepare_teachers,
    stoppable,
    worker_count,
)
from kdkit._run.build import on_cpu
from kdkit._run.cells import Cell, run_cells, scene_of
from kdkit._run.folder import first_command, gone_if_refused, run_environment, write_run_files
from kdkit.errors import ConfigError, KdkitError

if TYPE_CHECKING:
    from kdkit._config.context import Context

__all__ = ["compare"]


def compare(cfg: DictConfig, context: Context) -> Path:
    """Train every method with every seed, then rank them against the baseline; with a budget, search.

    A comparison that was stopped goes on with ``resume=FOLDER``; finished cells are not run again.

    Returns:
        The folder of the comparison.

    Raises:
        KdkitError: after the report is written, if a cell failed.
    """
    if PartialState(cpu=on_cpu(cfg.engine)).num_processes > 1:
        raise ConfigError("kdkit compare starts its own processes; call it without torchrun or accelerate launch")
    cfg, context = as_started(cfg, context)
    if cfg.budget is not None:
        from kdkit._run.search import find_best

        return find_best(cfg, context)
    configs, seeds, workers = method_configs(cfg, context), seed_list(cfg), worker_count(cfg)
    folder = comparison_folder(cfg)
    with gone_if_refused(folder, not cfg.resume), stoppable(folder):
        return _compare(folder, configs, seeds, workers, cfg, context)


def _compare(
    folder: Path, configs: dict[str, DictConfig], seeds: list[int], workers: int, cfg: DictConfig, context: Context
) -> Path:
    from kdkit.report import print_comparison, write_compare_report

    cells = _cells(configs, seeds, folder)
    done = _finished(folder, cells)
    todo = [cell for cell in cells if (cell.method, cell.seed) not in done]
    scene = scene_of(cells[0].config())
    environment = run_environment(first_command(folder) if cfg.resume else context.command_line)
    write_run_files(folder, cells[0].config(), environment)
    own = {
        "baseline": cfg.baseline or next(iter(configs)),
        "methods": {name: list(chosen.loss) for name, chosen in configs.items()},
        "seeds": seeds,
        "cells": {f"{cell.method}/{cell.seed}": sha256_json(defining(cell.settings)) for cell in cells},
    }
    write_json(folder / "compare.json", {**base_facts(cells, scene, None, environment, context), **own})
    teacher = prepare_teachers(cells)
    facts = {**base_facts(cells, scene, teacher, environment, context), **own}
    write_json(folder / "compare.json", facts)
    failed = _run(todo, context, folder, workers, len(cells))
    report = write_compare_report(folder)
    print_comparison(folder)
    print(f"report: {report}", flush=True)
    if failed:
        raise KdkitError(
            f"{failed} of {len(cells)} cells failed (the leaderboard shows them; tracebacks are in {folder}/cells); "
            f"try them again with resume={folder}"
        )
    return folder


def _cells(configs: dict[str, DictConfig], seeds: Sequence[int], folder: Path) -> list[Cell]:
    return [
        make_cell(method, chosen, seed, folder / "cells" / f"{method}-s{seed}")
        for seed in seeds
        for method, chosen in configs.items()
    ]


def _finished(folder: Path, cells: Sequence[Cell]) -> set[tuple[str, int]]:
    """Cells of an earlier part of this comparison; other settings are refused."""
    path = folder / "compare.json"
    if not path.is_file():
        return set()
    stored = json.loads(path.read_text())
    if "search" in stored:
        raise ConfigError(f"resume={folder} is a search with a budget; go on with resume={folder} alone, or budget=…")
    known = stored.get("cells", {})
    for cell in cells:
        digest = known.get(f"{cell.method}/{cell.seed}")
        if digest is not None and digest != sha256_json(defining(cell.settings)):
            raise ConfigError(
                f"resume={folder} holds {cell.name} with other settings; repeat the command it was started with "
                "(it is in compare.json), or start a new comparison"
            )
    return {(str(r["method"]), int(r["seed"])) for r in read_jsonl(folder / "results.jsonl") if r["status"] == "ok"}


def _run(cells: Sequence[Cell], context: Context, folder: Path, workers: int, total: int) -> int:
    """Run the cells and record each as it is finished; returns how many failed."""
    begin, failed = time.monotonic(), 0
    before = total - len(cells)
    print(f"{len(cells)} trainings in {min(workers, max(len(cells), 1))} processes", flush=True)
    for number, record in enumerate(run_cells(cells, context, workers), start=1):
        append_jsonl(folder / "results.jsonl", record)
        failed += record["status"] != "ok"
        left = (time.monotonic() - begin) / number * (len(cells) - number)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in list(record["metrics"].items())[:4])
        text = numbers if record["status"] == "ok" else f"failed: {record['error']}"
        where = f"[{before + number}/{total}] {record['method']}, seed {record['seed']}"
        print(f"{where}: {text}  (about {left:.0f} s left)", flush=True)
    return failed
