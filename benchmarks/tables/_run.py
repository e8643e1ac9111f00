"""Running the cells of a table: teachers first, then every cell, each recorded as it is finished."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from benchmarks.tables._cluster import Launcher, run_in_jobs
from benchmarks.tables._data import Watched, made_up_scene, real_scene
from kdkit._config.context import Context
from kdkit._config.recipes import recipes_dir
from kdkit._files import append_jsonl, read_jsonl, sha256_json
from kdkit._run.build import Scene
from kdkit._run.cells import Cell, run_cells
from kdkit.errors import ConfigError, KdkitError

__all__ = ["CONTEXT", "finished", "run_all", "run_smoke", "small", "smoke", "train_teachers"]

CONTEXT = Context("distill", recipes=recipes_dir(), config_name="distill")
SMOKE: dict[str, Any] = {
    "epochs": 1,
    "max_steps": 2,
    "batch_size": 4,
    "eval_batch_size": 8,
    "eval_every": 0,
    "checkpoint_every": 0,
}
SMOKE |= {"log_every": 1000, "compile": False, "compile_teacher": False, "device": "cpu", "precision": "no"}

_scenes: dict[str, Scene] = {}


def _scene(cfg: DictConfig, make: Callable[[DictConfig], Scene]) -> Scene:
    """Data, task and accelerator of a cell; loaded once per process for cells that share them."""
    shared = OmegaConf.create({"data": cfg.data, "task": cfg.task, "engine": cfg.engine})
    key = sha256_json(OmegaConf.to_container(shared, resolve=True))
    if key not in _scenes:
        _scenes.clear()
        _scenes[key] = make(cfg)
    known = _scenes[key]
    cfg.spec = known.cfg.spec
    return Scene(cfg, known.data, known.task, known.accelerator)


# ---- one cell ------------------------------------------------------------------------------------------------------


def run_cell(cell: Cell, context: Context) -> dict[str, Any]:
    """Train and measure a cell, from its last checkpoint if it has one; a failure comes back as a record."""
    return _record(cell, context, real_scene, saves=True)


def run_smoke(cell: Cell, context: Context) -> dict[str, Any]:
    """Two steps on made-up data with an untrained teacher."""
    return _record(cell, context, lambda cfg: made_up_scene(cfg, 2 * int(cfg.engine.batch_size)), saves=False)


def _record(cell: Cell, context: Context, make: Callable[[DictConfig], Scene], *, saves: bool) -> dict[str, Any]:
    try:
        return {**_named(cell), "status": "ok", "error": None, **_train(cell, context, make, saves)}
    except Exception as error:
        Path(cell.folder).mkdir(parents=True, exist_ok=True)
        (Path(cell.folder) / "traceback.txt").write_text(traceback.format_exc())
        return failure(cell, error)


def _named(cell: Cell) -> dict[str, Any]:
    pair, method = cell.method.split("|")
    return {"pair": pair, "method": method, "seed": cell.seed, "digest": defining(cell.settings)}


def failure(cell: Cell, error: Exception) -> dict[str, Any]:
    """The record of a cell that came to nothing."""
    text = str(error) if isinstance(error, KdkitError) else f"{type(error).__name__}: {error}"
    return {**_named(cell), "status": "failed", "error": text, "metrics": {}, "best": {}, "seconds": None}


def _train(cell: Cell, context: Context, make: Callable[[DictConfig], Scene], saves: bool) -> dict[str, Any]:
    from kdkit._run.distill import distill_networks
    from kdkit._run.finish import distilled_rows, finish
    from kdkit._run.session import open_session

    folder, cfg = Path(cell.folder), cell.config()
    scene = _scene(cfg, make)
    if saves and any((folder / "checkpoints").glob("*")):
        cfg.resume = str(folder)
    with open_session(cfg, context, tag="table", scene=scene, folder=folder, saves=saves) as session:
        distilled = distill_networks(session)
        rows = distilled_rows(session, distilled)
        finish(session, "distill", distilled.student, distilled.fit, rows)
        metrics = rows[-1].metrics
    return {
        "metrics": {name: _short(value) for name, value in metrics.items()},
        "best": _best(folder, metrics, scene),
        "seconds": _short(distilled.fit.seconds),
        "parameters": rows[-1].parameters,
    }


def _short(value: float) -> float:
    """Six significant digits: more than any spread over seeds is worth, and a third of the file."""
    return float(f"{value:.6g}")


def _best(folder: Path, last: dict[str, float], scene: Scene) -> dict[str, Any]:
    """The best value of the primary metric on the test split after any epoch: what the literature may report.

    Data with a validation split of their own are evaluated on that on the way; there the last value is the only one.
    """
    primary = scene.task.primary
    seen = [
        (line["metrics"][primary], line["epoch"])
        for line in (read_jsonl(folder / "metrics.jsonl") if isinstance(scene.data, Watched) else [])
        if line.get("split") == "val" and line.get("network", "student") == "student" and primary in line["metrics"]
    ]
    if not seen:
        return {"value": _short(last[primary]), "epoch": None}
    value, epoch = (max if scene.task.higher_is_better else min)(seen, key=lambda point: float(point[0]))
    return {"value": _short(value), "epoch": epoch}


# ---- all of them ---------------------------------------------------------------------------------------------------


def defining(settings: dict[str, Any]) -> str:
    """Digest of what makes two cells the same, its first 16 digits."""
    left_out = ("run_dir", "resume", "spec", "loggers")
    return sha256_json({key: value for key, value in settings.items() if key not in left_out})[:16]


def finished(folder: Path, cells: Sequence[Cell]) -> dict[tuple[str, int], dict[str, Any]]:
    """Records of cells that need not be run again; the last one of each counts.

    Raises:
        ConfigError: if a cell was run with other settings, naming the first cell that differs.
    """
    wanted = {(cell.method, cell.seed): cell for cell in cells}
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for record in read_jsonl(folder / "results.jsonl") if (folder / "results.jsonl").is_file() else []:
        key = f"{record['pair']}|{record['method']}", int(record["seed"])
        cell = wanted.get(key)
        if cell is None:
            continue
        if record["digest"] != defining(cell.settings):
            raise ConfigError(
                f"out={folder} holds {key[0]}, seed {key[1]}, with other settings{_difference(cell)}; "
                "choose another folder with out=..., or repeat the command it was started with (table.json has it)"
            )
        if record["status"] == "ok":
            found[key] = record
    return found


def _difference(cell: Cell) -> str:
    """The first setting that differs, if the run is still there."""
    from kdkit.report._format import flatten

    path = Path(cell.folder) / "config.yaml"
    if not path.is_file():
        return ""
    then = flatten(OmegaConf.to_container(OmegaConf.load(path), resolve=True))  # type: ignore[arg-type]
    now = flatten(OmegaConf.to_container(cell.config(), resolve=False))  # type: ignore[arg-type]
    for key in sorted({*then, *now}):
        kept = now.get(key), then.get(key)
        if key.split(".")[0] in ("run_dir", "resume", "spec", "loggers") or "${" in str(kept[0]):
            continue
        if kept[0] != kept[1]:
            return f" ({key}={kept[1]} then, {kept[0]} now)"
    return ""


def train_teachers(cells: Sequence[Cell], folder: Path) -> None:
    """Train the teachers that are missing and write down what each achieves, before any worker needs them."""
    from kdkit._run.distill import network_name
    from kdkit._run.results import measure
    from kdkit._run.teacher import provide_teacher
    from kdkit.engine.callbacks import make_progress

    path = folder / "teachers.jsonl"
    written = read_jsonl(path) if path.is_file() else []
    known = {record["key"]: record for record in written}
    said = {(record["pair"], record["key"]) for record in written}
    for cell in cells:
        cfg, pair = cell.config(), cell.method.split("|")[0]
        elsewhere = ("ema", "cached", "served", "routed")
        if cfg.teacher is None or cfg.teacher_loss or any(cfg.teacher.get(kind) for kind in elsewhere):
            continue
        plain: Any = OmegaConf.to_container(cfg, resolve=False)
        key = sha256_json([plain["teacher"], plain["data"], plain["engine"]])[:16]
        if (pair, key) in said:
            continue
        said.add((pair, key))
        if key not in known:
            scene = _scene(cfg, real_scene)
            name = network_name(cfg.teacher)
            guide = provide_teacher(cfg, scene, name, make_progress(cfg.engine.progress, scene.task.unit))
            assert guide is not None
            networks = [member.network for member in guide.members]
            asked = guide.teacher if len(networks) > 1 else None
            row = measure(networks, scene, name="teacher", origin=guide.origin, asked=asked, profile=False)
            metrics = {each: _short(value) for each, value in row.metrics.items()}
            known[key] = {"key": key, "network": name, "metrics": metrics, "origin": guide.origin}
            print(f"teacher {name}: {scene.task.primary} {row.metrics[scene.task.primary]:.4g}", flush=True)
        append_jsonl(path, {**known[key], "pair": pair})


def run_all(
    cells: Sequence[Cell],
    folder: Path,
    workers: int,
    done: Mapping[tuple[str, int], dict[str, Any]],
    after: Callable[[], None] = lambda: None,
    launcher: Launcher | None = None,
) -> int:
    """Run the cells that are not among those :func:`finished`, ``after`` each of them; returns how many failed."""
    todo = [cell for cell in cells if (cell.method, cell.seed) not in done]
    what = "processes" if launcher is None else f"jobs at a time ({launcher.cluster})"
    print(f"{len(cells)} cells, {len(done)} of them finished before; {min(workers, max(len(todo), 1))} {what}")
    results = folder / "results.jsonl"
    if launcher is not None:
        run, teachers = partial(run_cell, context=CONTEXT), partial(train_teachers, todo, folder)
        return _each(
            run_in_jobs(launcher, folder, todo, workers, run, failure, teachers), len(todo), results, after=after
        )
    if todo:
        train_teachers(todo, folder)
    return _each(run_cells(todo, CONTEXT, workers, run_cell), len(todo), results, after=after)


def smoke(cells: Sequence[Cell], workers: int) -> list[dict[str, Any]]:
    """Two steps of every cell on made-up data; records of those that failed."""
    cut = [Cell(cell.method, cell.seed, small(cell.settings), cell.folder) for cell in cells]
    failed: list[dict[str, Any]] = []
    _each(run_cells(cut, CONTEXT, workers, run_smoke), len(cut), None, failed)
    return failed


def small(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings cut down to two steps with an untrained teacher."""
    settings = json.loads(json.dumps(settings))
    settings["engine"].update(SMOKE)
    for block in [settings.get("teacher"), *((settings.get("teacher") or {}).get("members") or [])]:
        if block and block.get("ema") is None:
            block["weights"] = "random"
            block.get("model", {}).update({"pretrained": False} if "pretrained" in block.get("model", {}) else {})
    if "pretrained" in settings["student"]["model"]:
        settings["student"]["model"]["pretrained"] = False
    for link in (settings.get("chain") or {}).values():
        link.setdefault("engine", {}).update({"max_steps": 1})
    return settings


def _each(
    records: Iterable[dict[str, Any]],
    total: int,
    results: Path | None,
    failures: list[dict[str, Any]] | None = None,
    after: Callable[[], None] = lambda: None,
) -> int:
    begin, failed = time.monotonic(), 0
    for number, record in enumerate(records, start=1):
        if results is not None:
            append_jsonl(results, record)
        after()
        if record["status"] != "ok":
            failed += 1
            if failures is not None:
                failures.append(record)
        left = (time.monotonic() - begin) / number * (total - number)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in list(record["metrics"].items())[:3])
        text = numbers if record["status"] == "ok" else f"failed: {record['error']}"
        where = f"[{number}/{total}] {record['pair']} | {record['method']}, seed {record['seed']}"
        print(f"{where}: {text}  (about {_span(left)} left)", flush=True)
    return failed


def _span(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
