"""What every comparison does besides its trainings: folder, teachers, facts, and the leaderboard on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from kdkit._config.check import prepare
from kdkit._config.compose import Composer
from kdkit._config.context import Context
from kdkit._files import sha256_json
from kdkit._run.build import Scene
from kdkit._run.cells import Cell, scene_of
from kdkit._run.devices import visible_gpus
from kdkit._run.folder import load_config, make_run_dir
from kdkit.errors import ConfigError, InputError

if TYPE_CHECKING:
    from kdkit._run.results import Row

__all__ = [
    "as_started",
    "base_facts",
    "comparison_folder",
    "defining",
    "make_cell",
    "prepare_teachers",
    "stoppable",
    "without_own",
    "worker_count",
]

_OWN = ("losses", "base", "baseline", "seeds", "workers", "budget", "search")
_FREE_ON_RESUME = ("resume", "budget", "workers", "trust", "engine.progress")
_CELL_ENGINE = {"baseline": False, "export": False, "report": False, "checkpoint_every": 0}


def as_started(cfg: DictConfig, context: Context) -> tuple[DictConfig, Context]:
    """``resume=FOLDER`` alone means the settings that the comparison was started with."""
    path = Path(str(cfg.resume)) / "compare.json"
    typed = [word for word in context.overrides if not word.startswith("loss=")]
    keys = {word.lstrip("+~").split("=", 1)[0] for word in typed}
    if not cfg.resume or not path.is_file() or not keys <= set(_FREE_ON_RESUME):
        return cfg, context
    stored = json.loads(path.read_text())
    words = stored.get("overrides")
    if words is None:
        return cfg, context
    kept = [word for word in words if word.lstrip("+~").split("=", 1)[0] not in {*keys, "trust", "run_dir"}]
    folder = context.config_dir or (Path(stored["config_dir"]) if stored.get("config_dir") else None)
    context = replace(context, overrides=(*kept, *typed), config_dir=folder)
    composer = Composer(context.recipes, folder)
    return prepare(composer.compose(context.config_name, context.overrides), context), context


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Whoever interrupts a comparison is told how to look at it and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"so far: kdkit report {folder}\ngo on:  kdkit compare resume={folder}", flush=True)
        raise


def without_own(config: DictConfig) -> DictConfig:
    """Settings of a run out of those of a comparison."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return OmegaConf.create({key: value for key, value in plain.items() if key not in _OWN})


def make_cell(name: str, config: DictConfig, seed: int, folder: Path, max_steps: int | None = None) -> Cell:
    """A training with the settings of a method, for this seed and this folder; ``max_steps`` makes it shorter."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    settings: dict[str, Any] = {key: value for key, value in plain.items() if key not in _OWN}
    engine = settings["engine"]
    engine |= _CELL_ENGINE if engine["select"] == "best" else {**_CELL_ENGINE, "eval_every": 0}
    engine |= {"max_steps": max_steps} if max_steps is not None else {}
    settings |= {"seed": seed, "resume": None, "run_dir": None, "loggers": {}}
    return Cell(name, seed, settings, str(folder))


def worker_count(cfg: DictConfig) -> int:
    """``auto``: a process per GPU; on the CPU one per core, since small networks leave cores idle."""
    if cfg.workers != "auto":
        if isinstance(cfg.workers, bool) or not isinstance(cfg.workers, int) or cfg.workers < 1:
            raise ConfigError(f"workers must be auto or a whole number of at least 1, got {cfg.workers!r}")
        return int(cfg.workers)
    on_cpu = cfg.engine.device == "cpu" or (cfg.engine.device == "auto" and not torch.cuda.is_available())
    if not on_cpu:
        return max(len(visible_gpus()), 1)
    return min(os.cpu_count() or 1, 8) if not cfg.engine.threads else 1


def comparison_folder(cfg: DictConfig) -> Path:
    """A new folder, or the one to go on in."""
    if not cfg.resume:
        return make_run_dir(cfg, "compare")
    folder = Path(cfg.resume)
    load_config(folder)
    if not (folder / "compare.json").is_file():
        raise InputError(f"resume={folder} is no comparison; `kdkit distill resume=...` continues a single run")
    return folder


def defining(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without what may differ between two parts of one comparison."""
    return {key: value for key, value in settings.items() if key not in ("run_dir", "resume", "spec", "loggers")}


def prepare_teachers(cells: Sequence[Cell]) -> Row | None:
    """Train what teachers are missing before any worker needs them; measure the first one."""
    from kdkit._run.distill import network_name
    from kdkit._run.results import measure
    from kdkit._run.teacher import provide_teacher
    from kdkit.engine.callbacks import make_progress

    seen: set[str] = set()
    row = None
    for cell in cells:
        cfg = cell.config()
        elsewhere = cfg.teacher is not None and any(cfg.teacher.get(kind) for kind in ("ema", "cached", "served"))
        if cfg.teacher is None or cfg.teacher_loss or elsewhere:
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


def base_facts(
    cells: Sequence[Cell], scene: Scene, teacher: Row | None, environment: dict[str, Any], context: Context
) -> dict[str, Any]:
    """What ``compare.json`` says of any comparison, whatever its methods and seeds are."""
    return {
        "command": environment["command"],
        "overrides": [word for word in context.overrides if not word.startswith("resume=")],
        "config_dir": str(context.config_dir) if context.config_dir else None,
        "name": str(scene.cfg.name),
        "task": scene.task.name,
        "primary": scene.task.primary,
        "higher_is_better": scene.task.higher_is_better,
        "data": scene.data.describe(),
        "teacher": _teacher_facts(teacher, scene.task.primary),
        "teacher_row": teacher.as_dict() if teacher is not None else None,
        "notes": _notes(cells, scene.data.describe()),
        "environment": environment,
    }


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
    alone = sorted({cell.method for cell in cells if cell.settings.get("strategy") is None})
    if any(cell.settings.get("strategy") for cell in cells):
        others = f"; {' and '.join(alone)} on the data's own text" if alone else ""
        notes[0] = (
            f"Every method trains the same student, {network_name(cfg.student)}, for the same number of steps, on text "
            f"that is written while training in a share of the batches{others}."
        )
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
