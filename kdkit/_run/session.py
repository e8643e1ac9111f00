"""A run from its folder to its report: what every command sets up before the work and writes after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig, OmegaConf, open_dict

from kdkit._files import clean_temporaries, read_jsonl, to_json, write_atomic, write_json
from kdkit._run.build import Scene, make_accelerator, on_cpu, set_scene
from kdkit._run.folder import (
    first_command,
    gone_if_refused,
    make_run_dir,
    resume_config,
    run_environment,
    write_run_files,
)
from kdkit._run.tokenizers import settle_teacher
from kdkit.engine.callbacks import Callback, Recorder, TrackerLog, make_progress
from kdkit.engine.interrupt import Interrupted
from kdkit.errors import ServerError

if TYPE_CHECKING:
    from kdkit._config.context import Context

__all__ = ["Session", "open_session"]


@dataclass(slots=True)
class Session:
    """One run.

    Attributes:
        cfg: its settings, ``spec`` filled in.
        folder: where everything goes.
        scene: data, task, accelerator.
        environment: versions, hardware, command.
        resumed: whether it continues an earlier run.
        quiet: print nothing (cells of a comparison).
        saves: keep checkpoints.
        timings: seconds by part.
    """

    cfg: DictConfig
    folder: Path
    scene: Scene
    environment: dict[str, Any]
    resumed: bool = False
    quiet: bool = False
    saves: bool = True
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def metrics_file(self) -> Path:
        """Where records go."""
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path | None:
        """Where checkpoints go, if there are any."""
        return self.folder / "checkpoints" if self.saves else None

    def say(self, text: str) -> None:
        """Print a line, on the main process of a run that is not quiet."""
        if not self.quiet and self.scene.accelerator.is_main_process:
            print(text, flush=True)

    def progress(self) -> list[Callback]:
        """A fresh progress display."""
        kind: Any = "none" if self.quiet else self.cfg.engine.progress
        return make_progress(kind, self.scene.task.unit)

    def listeners(self, network: str) -> list[Callback]:
        """Display, ``metrics.jsonl`` and trackers for the training this run is about."""
        listeners = [*self.progress(), Recorder(self.metrics_file, network)]
        if self.scene.accelerator.trackers:
            listeners.append(TrackerLog(self.scene.accelerator))
        return listeners

    def add_history(self, records: list[dict[str, Any]], network: str) -> None:
        """Put the learning curve of a network that came out of the store beside this run's own."""
        if not self.scene.accelerator.is_main_process:
            return
        lines = read_jsonl(self.metrics_file)
        others = [line for line in lines if line.get("network") != network]
        if len(others) + len(records) != len(lines):  # a run that was killed may have written some of them
            lines = [*({**record, "network": network} for record in records), *others]
            write_atomic(self.metrics_file, "".join(to_json(line) + "\n" for line in lines))

    def write_results(self, content: dict[str, Any]) -> None:
        """``results.json``."""
        if self.scene.accelerator.is_main_process:
            write_json(self.folder / "results.json", content)


@contextmanager
def open_session(
    cfg: DictConfig,
    context: Context,
    *,
    tag: str,
    scene: Scene | None = None,
    folder: Path | None = None,
    saves: bool | None = None,
) -> Iterator[Session]:
    """Make or reopen the folder, load the data, start the trackers; end the trackers on the way out.

    Args:
        cfg: settings, already checked.
        context: how the command was called.
        tag: goes into the name of the folder.
        scene: of an enclosing comparison, whose accelerator is shared; then the session is quiet.
        folder: where to, instead of a new folder.
        saves: keep checkpoints; by default, if there is no enclosing comparison.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, True)
    resumed = bool(cfg.resume)
    if resumed:
        cfg = resume_config(cfg, list(context.overrides))
    state = PartialState(cpu=on_cpu(cfg.engine))
    new = folder is None and not resumed
    if folder is None:
        folder = Path(str(cfg.resume)) if resumed else _agreed_folder(cfg, tag, state)
    with (
        gone_if_refused(folder, new and state.is_main_process),
        _opened(cfg, context, scene, folder, (scene is None) if saves is None else saves) as session,
    ):
        yield session


@contextmanager
def _opened(cfg: DictConfig, context: Context, scene: Scene | None, folder: Path, saves: bool) -> Iterator[Session]:
    quiet, resumed = scene is not None, bool(cfg.resume)
    accelerator = scene.accelerator if scene is not None else make_accelerator(cfg, folder)
    inner = Scene(cfg, scene.data, scene.task, accelerator) if scene is not None else set_scene(cfg, accelerator)
    if scene is not None:
        cfg.spec = scene.cfg.spec
        settle_teacher(cfg, scene.data)
    with open_dict(cfg):
        cfg.run_dir = str(folder)
    environment = run_environment(first_command(folder) if resumed else context.job_line)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        clean_temporaries(folder)
        write_run_files(folder, cfg, environment)
    if not quiet and accelerator.log_with:
        _start_trackers(cfg, accelerator)
    session = Session(cfg, folder, inner, environment, resumed, quiet, saves)
    try:
        yield session
    except Interrupted as error:
        if not quiet:
            session.say(f"{error}; continue with: kdkit {context.command} resume={folder}")
        raise
    except ServerError as error:
        if quiet or not any(folder.glob("checkpoints/step-*")):
            raise
        raise ServerError(f"{error}; nothing is lost: go on with kdkit {context.command} resume={folder}") from error
    finally:
        if not quiet and accelerator.trackers:
            accelerator.end_training()


def _agreed_folder(cfg: DictConfig, tag: str, state: PartialState) -> Path:
    """The main process makes the folder, the others are told."""
    agreed: list[str | None] = [str(make_run_dir(cfg, tag)) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(agreed)
    return Path(str(agreed[0]))


def _start_trackers(cfg: DictConfig, accelerator: Accelerator) -> None:
    flat = {}
    for key, value in _leaves(OmegaConf.to_container(cfg, resolve=True)):
        flat[key] = value if isinstance(value, bool | int | float | str) else str(value)
    options = {name: OmegaConf.to_container(value) for name, value in cfg.loggers.items() if value}
    try:
        accelerator.init_trackers(
            "tensorboard" if list(cfg.loggers) == ["tensorboard"] else str(cfg.name), flat, options
        )
    except Exception as error:  # a tracker that is down must not cost a run
        print(
            f"kdkit: the trackers {list(cfg.loggers)} could not be started ({error}); going on without", file=sys.stderr
        )
        accelerator.trackers = []


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}{key}.")
    else:
        yield prefix[:-1], value
