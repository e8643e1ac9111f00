"""The work of ``kdkit compare``: several losses times several seeds, one leaderboard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf

from kdkit._config.methods import method_configs, seed_list
from kdkit._files import append_jsonl, read_jsonl, sha256_json, write_json
from kdkit._run.build import on_cpu
from kdkit._run.cells import Cell, run_cells, scene_of
from kdkit._run.folder import (
    first_command,
    gone_if_refused,
    load_config,
    make_run_dir,
    run_environment,
    write_run_files,
)
from kdkit.errors import ConfigError, InputError, KdkitError

if TYPE_CHECKING:
    from kdkit._config.context import Context
    from kdkit._run.results import Row

__all__ = ["compare"]

_CELL_ENGINE = {"baseline": False, "export": False, "report": False, "checkpoint_every": 0}


def compare(cfg: DictConfig, context: Context) -> Path:
    """Train every method with every seed, then rank them against the baseline.

    A comparison that was stopped goes on with ``resume=FOLDER``; finished cells are not run again.

    Returns:
        The folder of the comparison.

    Raises:
        KdkitError: after the report is written, if a cell failed.
    """
    if PartialState(cpu=on_cpu(cfg.engine)).num_processes > 1:
        raise ConfigError("kdkit compare starts its own processes; call it without torchrun or accelerate launch")
    configs, seeds, workers = method_configs(cfg, context), seed_list(cfg), _workers(cfg)
    folder = _folder(cfg)
    with gone_if_refused(folder, not cfg.resume):
        return _compare(folder, configs, seeds, workers, cfg, context)


def _compare(
    folder: Path, configs: dict[str, DictConfig], seeds: list[int], workers: int, cfg: DictConfig, context: Context
) -> Path:
    from kdkit.report import write_compare_report

    cells = _cells(configs, seeds, folder)
    done = _finished(folder, cells)
    todo = [cell for cell in cells if (cell.method, cell.seed) not in done]
    scene = scene_of(cells[0].config())
    environment = run_environment(first_command(folder) if cfg.resume else context.command_line)
    digests = {f"{cell.method}/{cell.seed}": sha256_json(_defining(cell.settings)) for cell in cells}
    write_run_files(folder, cells[0].config(), environment)
    write_json(folder / "compare.json", {"command": environment["command"], "cells": digests})  # to go on from here
    teacher = _prepare_teachers(cells)
    facts = {
        "command": environment["command"],
        "name": str(cfg.name),
        "task": scene.task.name,
        "baseline": cfg.baseline or next(iter(configs)),
        "primary": scene.task.primary,
        "higher_is_better": scene.task.higher_is_better,
        "methods": {name: list(chosen.loss) for name, chosen in configs.items()},
        "seeds": seeds,
        "data": scene.data.describe(),
        "teacher": _teacher_facts(teacher, scene.task.primary),
        "teacher_row": teacher.as_dict() if teacher is not None else None,
        "notes": _notes(cells, scene.data.describe()),
        "cells": digests,
        "environment": environment,
    }
    write_json(folder / "compare.json", facts)
    failed = _run(todo, context, folder, workers, len(cells))
    report = write_compare_report(folder)
    _print_leaderboard(folder, facts)
    print(f"report: {report}", flush=True)
    if failed:
        raise KdkitError(
            f"{failed} of {len(cells)} cells failed (the leaderboard shows them; tracebacks are in {folder}/cells); "
            f"try them again with resume={folder}"
        )
    return folder


def _workers(cfg: DictConfig) -> int:
    """``auto``: on the CPU a process per core, since small networks leave cores idle; a GPU is not shared."""
    if cfg.workers != "auto":
        if isinstance(cfg.workers, bool) or not isinstance(cfg.workers, int) or cfg.workers < 1:
            raise ConfigError(f"workers must be auto or a whole number of at least 1, got {cfg.workers!r}")
        return int(cfg.workers)
    on_cpu = cfg.engine.device == "cpu" or (cfg.engine.device == "auto" and not torch.cuda.is_available())
    return min(os.cpu_count() or 1, 8) if on_cpu and not cfg.engine.threads else 1


def _folder(cfg: DictConfig) -> Path:
    if not cfg.resume:
        return make_run_dir(cfg, "compare")
    folder = Path(cfg.resume)
    load_config(folder)
    if not (folder / "compare.json").is_file():
        raise InputError(f"resume={folder} is no comparison; `kdkit distill resume=...` continues a single run")
    return folder


def _cells(configs: dict[str, DictConfig], seeds: Sequence[int], folder: Path) -> list[Cell]:
    cells = []
    for seed in seeds:
        for method, chosen in configs.items():
            cfg = chosen.copy()
            cfg.seed, cfg.resume, cfg.run_dir, cfg.loggers = seed, None, None, {}
            eval_every = cfg.engine.eval_every if cfg.engine.select == "best" else 0
            cfg.engine.update({**_CELL_ENGINE, "eval_every": eval_every})
            settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
            cells.append(Cell(method, seed, settings, str(folder / "cells" / f"{method}-s{seed}")))
    return cells


def _defining(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without what may differ between two parts of one comparison."""
    return {key: value for key, value in settings.items() if key not in ("run_dir", "resume", "spec", "loggers")}


def _finished(folder: Path, cells: Sequence[Cell]) -> set[tuple[str, int]]:
    """Cells of an earlier part of this comparison; other settings are refused."""
    path = folder / "compare.json"
    if not path.is_file():
        return set()
    known = json.loads(path.read_text()).get("cells", {})
    for cell in cells:
        digest = known.get(f"{cell.method}/{cell.seed}")
        if digest is not None and digest != sha256_json(_defining(cell.settings)):
            raise ConfigError(
                f"resume={folder} holds {cell.name} with other settings; repeat the command it was started with "
                "(it is in compare.json), or start a new comparison"
            )
    return {(str(r["method"]), int(r["seed"])) for r in read_jsonl(folder / "results.jsonl") if r["status"] == "ok"}


def _prepare_teachers(cells: Sequence[Cell]) -> Row | None:
    """Train what teachers are missing before any worker needs them; measure the first one."""
    from kdkit._run.distill import network_name
    from kdkit._run.results import measure
    from kdkit._run.teacher import provide_teacher
    from kdkit.engine.callbacks import make_progress

    seen: set[str] = set()
    row = None
    for cell in cells:
        cfg = cell.config()
        if cfg.teacher is None or cfg.teacher_loss or cfg.teacher.get("ema") or cfg.teacher.get("cached"):
            continue
        scene = scene_of(cfg)
        plain = OmegaConf.to_container(cfg, resolve=True)
        key = sha256_json([plain["teacher"], plain["data"]])  # type: ignore[index,call-overload]
        if key in seen:
            continue
        seen.add(key)
        progress = make_progress(cfg.engine.progress, scene.task.unit)
        guide = provide_teacher(cfg, scene, network_name(cfg.teacher), progress)
        assert guide is not None
        if row is None:
            networks = [member.network for member in guide.members]
            asked = guide.teacher if len(networks) > 1 else None
            row = measure(networks, scene, name="teacher", origin=guide.origin, asked=asked)
            print(f"teacher {row.network}: {guide.origin}", flush=True)
            print(f"teacher {scene.task.primary}: {row.metrics[scene.task.primary]:.4g}", flush=True)
    return row


def _teacher_facts(row: Row | None, primary: str) -> dict[str, str] | None:
    """What a reader of the leaderboard wants to know of the teacher."""
    if row is None:
        return None
    numbers = {name: f"{row.metrics[name]:.4g}" for name in (primary, "nll", "ece") if name in row.metrics}
    return {"network": row.network, **numbers, "parameters": f"{row.parameters:,}", "weights": row.origin}


def _notes(cells: Sequence[Cell], data: dict[str, Any]) -> list[str]:
    from kdkit._run.distill import network_name

    cfg = cells[0].config()
    notes = [
        f"Every method trains the same student, {network_name(cfg.student)}, on the same batches for the same "
        "number of steps; only the objective differs."
    ]
    online = sorted({cell.method for cell in cells if cell.settings.get("teacher_loss")})
    if online:
        notes.append(f"{' and '.join(online)}: online, with an untrained teacher that learns beside the student.")
    labels = cfg.data.get("labels")
    if labels:
        notes.append(
            f"Only {labels} of the {data['train']:,} training samples have labels for the student; cross-entropy sees "
            "those, the terms that compare with the teacher see all of them."
        )
    return notes


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


def _print_leaderboard(folder: Path, facts: dict[str, Any]) -> None:
    from rich.console import Console

    from kdkit.report import format_table, sentences, summarize

    rows = summarize(
        read_jsonl(folder / "results.jsonl"), facts["baseline"], facts["primary"], facts["higher_is_better"]
    )
    table, plain = format_table(rows)
    console = Console()
    print()
    if console.is_terminal:
        console.print(table)
    else:
        print(plain)
    print("\n" + "\n".join(sentences(rows)), flush=True)
