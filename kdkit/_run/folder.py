"""The folder a run leaves behind, and what the run was made with."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import kdkit
from kdkit._files import read_jsonl, write_atomic, write_json
from kdkit.errors import CheckpointError, ConfigError, InputError

__all__ = [
    "first_command",
    "gone_if_refused",
    "load_config",
    "make_run_dir",
    "resume_config",
    "run_environment",
    "write_run_files",
]

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "torchmetrics", "POT", "hydra-core", "numpy")
_FREE_ON_RESUME = (
    "resume",
    "run_dir",
    "loggers",
    "engine.progress",
    "engine.report",
    "engine.export",
    *(f"teacher.served.{key}" for key in ("url", "timeout", "retries", "wait", "concurrency", "key_variable")),
)


def make_run_dir(cfg: DictConfig, tag: str) -> Path:
    """A new folder: ``cfg.run_dir``, or ``runs/<name>/<time>-<tag>-s<seed>``.

    Raises:
        InputError: if it cannot be written, or is there already with something in it.
    """
    if cfg.run_dir:
        path = Path(str(cfg.run_dir))
        if path.is_dir() and any(path.iterdir()):
            raise InputError(
                f"run_dir={path} is there already and not empty; choose another one, or continue it with resume={path}"
            )
    else:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        base = Path("runs") / str(cfg.name) / f"{stamp}-{tag}-s{cfg.seed}"
        path, number = base, 2
        while path.exists():
            path, number = base.with_name(f"{base.name}-{number}"), number + 1
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"run_dir={path} cannot be written ({error.strerror or error}); choose a folder that can, with run_dir=..."
        ) from error
    return path


@contextmanager
def gone_if_refused(folder: Path, new: bool) -> Iterator[None]:
    """Take a new folder away again when an error ends the run before its training has left anything there."""
    try:
        yield
    except Exception:
        if new and not _worth_keeping(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                for parent in folder.parents:
                    if parent.parts[:1] == ("runs",):
                        parent.rmdir()
        raise


def _worth_keeping(folder: Path) -> bool:
    places = ("checkpoints/step-*", "chain/*/checkpoints/step-*", "cells/*", "search/rung*")
    kept = any(next(folder.glob(pattern), None) for pattern in places)
    return kept or any(line.get("network") == "student" for line in read_jsonl(folder / "metrics.jsonl"))


def first_command(folder: Path) -> str:
    """The command that started a run, for a report that somebody else can repeat."""
    try:
        return str(json.loads((folder / "environment.json").read_text())["command"])
    except (OSError, ValueError, KeyError):
        return shlex.join(["kdkit", "distill", f"resume={folder}"])


def run_environment(command: str) -> dict[str, Any]:
    """Versions, hardware, commit and command, for the report and whoever repeats the run."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kdkit": kdkit.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _commit() -> str | None:
    """Commit of the checkout kdkit runs from, with ``+`` for local changes; ``None`` for an installed wheel."""
    root = Path(kdkit.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        options: dict[str, Any] = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if dirty else "")


def write_run_files(folder: Path, cfg: DictConfig, environment: dict[str, Any]) -> None:
    """``config.yaml`` (resolved) and ``environment.json``."""
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(_resolved(cfg))))
    write_json(folder / "environment.json", environment)


def _resolved(cfg: DictConfig) -> Any:
    """The settings as a run uses them; ``${spec.steps}`` stays, since every training has its own number of steps."""
    mark = "<spec.steps>"
    marked = cfg.copy()
    marked.spec.steps = mark
    plain: Any = OmegaConf.to_container(marked, resolve=True)
    plain["spec"]["steps"] = None
    return _replaced(plain, mark, "${spec.steps}")


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    return new if value == old else value


def load_config(folder: str | Path) -> DictConfig:
    """The settings of an earlier run.

    Raises:
        InputError: if the folder is no run.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder} is no kdkit run (it holds no config.yaml); give the folder that a run has printed")
    try:
        return OmegaConf.load(path)  # type: ignore[return-value]
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}); it is damaged") from error


def resume_config(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The stored settings of the run to continue, after comparing them with what was typed.

    ``kdkit distill resume=RUN`` takes the stored settings; with further overrides the two must agree.

    Raises:
        ConfigError: naming the first settings that differ.
    """
    stored = load_config(cfg.resume)
    _check_command(cfg, stored)
    if any(_key(override) not in _FREE_ON_RESUME for override in overrides):
        typed = OmegaConf.to_container(cfg, resolve=False)
        differences = _differences(typed, OmegaConf.to_container(stored), "")
        if differences:
            key, now, then = differences[0]
            raise ConfigError(
                f"resume={cfg.resume} was started with {key}={then}, now {key}={now}"
                + (f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else "")
                + "; a run goes on with its own settings: leave the override out, or start a new run"
            )
    for key in _FREE_ON_RESUME[1:]:
        if any(_key(override) == key for override in overrides):
            OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    stored.run_dir, stored.resume = str(cfg.resume), str(cfg.resume)
    return stored


def _check_command(cfg: DictConfig, stored: DictConfig) -> None:
    """A run goes on with the command that started it; each has settings that the others lack."""
    marks = {"losses": "compare", "network": "train"}
    now, then = (next((marks[key] for key in marks if key in settings), "distill") for settings in (cfg, stored))
    if (Path(cfg.resume) / "compare.json").is_file():
        then = "compare"
    if now != then:
        raise ConfigError(f"resume={cfg.resume} is a run of kdkit {then}; continue it with kdkit {then} resume=...")


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0]


def _differences(now: Any, then: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    """Leaves that differ; unresolved interpolations of ``now`` are taken to agree, and so are filled-in specs."""
    if isinstance(now, dict) and isinstance(then, dict):
        found = []
        for key in sorted({*now, *then}, key=str):
            path = f"{prefix}{key}"
            if path not in (*_FREE_ON_RESUME, "spec"):
                found += _differences(now.get(key), then.get(key), f"{path}.")
        return found
    if isinstance(now, str) and "${" in now:
        return []
    if isinstance(now, int | float) and isinstance(then, int | float):
        return [] if float(now) == float(then) else [(prefix[:-1], now, then)]
    return [] if now == then else [(prefix[:-1], now, then)]
