"""Running a command through Hydra: everything is composed and checked before the first job starts."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdkit._config.check import prepare
from kdkit._config.compose import VERSION_BASE, Composer, texts, without_hydra
from kdkit._config.context import Context
from kdkit._config.explain import Failed, explain
from kdkit._config.help import command_help
from kdkit._config.methods import method_configs, with_losses
from kdkit._config.recipes import recipes_dir
from kdkit._config.safety import trust_of, verify_hydra
from kdkit._config.search import find_candidates
from kdkit.errors import ConfigError, KdkitError, did_you_mean

__all__ = ["run_command"]

_BASIC = "hydra._internal.core_plugins.basic_"


@dataclass(slots=True)
class Sweep:
    """What became of the jobs."""

    jobs: int = 0
    failures: list[Exception] = field(default_factory=list)


def run_command(command: str, argv: Sequence[str]) -> None:
    """``kdkit distill|train|cache|evaluate|compare``, as typed after the command.

    Raises:
        KdkitError: for everything that the user can act on.
        Exception: for a fault of kdkit's.
    """
    flags, options = _flags(argv)
    composer = Composer(recipes_dir(), Path(flags.config_dir) if flags.config_dir else None)
    name = str(flags.config_name or command).removesuffix(".yaml")
    context = Context(command, tuple(argv), tuple(flags.overrides), composer.recipes, name, composer.config_dir)
    failed = Failed(composer, name, overrides := list(flags.overrides))
    with trust_of(context), _full_errors():
        if not (flags.hydra_help or flags.shell_completion):
            _explained(lambda: overrides.extend(_added(composer, context)), failed)
            _explained(lambda: _before(composer, replace(context, overrides=tuple(overrides)), flags), failed)
        if not flags.help:
            _explained(lambda: _run(command, [*options, *overrides], context), failed)


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's own options, read by its parser, and their words: overrides may stand between them."""
    parser = get_args_parser()
    parser.prog = "kdkit"
    parser.error = _refuse_flags  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(list(argv))
    if flags.config_path is not None:
        raise ConfigError("--config-path would take kdkit's recipes away; add yours to them with --config-dir")
    if flags.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun reads a pickle, which kdkit does not; continue a run with resume=FOLDER"
        )
    options = list(argv)
    for override in flags.overrides:
        options.remove(override)
    return flags, options


def _refuse_flags(message: str) -> NoReturn:
    raise ConfigError(f"{message}; `kdkit distill --help` lists the options")


def _added(composer: Composer, context: Context) -> list[str]:
    """Overrides that follow from the typed ones."""
    added = []
    if context.command == "compare":
        added.append(with_losses(composer, context.config_name, context.overrides))
    for override in composer.parse(context.overrides):
        if override.key_or_group == "run_dir" and not override.is_sweep_override():
            added.append(f"hydra.sweep.dir={override.get_value_element_as_str()}")
    return added


def _before(composer: Composer, context: Context, flags: argparse.Namespace) -> None:
    """Compose every job of the command, and check it if it is going to run."""
    overrides = context.overrides
    mode = next((o.value() for o in composer.parse(overrides) if o.key_or_group == "hydra.mode"), None)
    runs = not (flags.help or flags.cfg or flags.info)
    if flags.multirun or str(mode).upper() == RunMode.MULTIRUN.name:
        jobs: Iterator[DictConfig] = composer.jobs(context.config_name, overrides)
        verify_hydra(next(jobs).hydra)
    else:
        jobs = iter([composer.compose(context.config_name, overrides, hydra=True)])
    for config in jobs:
        verify_hydra(config.hydra)
        if flags.help:
            print(command_help(config.hydra.help.header, composer.recipes, context.config_dir), end="")
            break
        if flags.package:
            _check_package(flags.package, config)
        if runs:
            job = replace(context, overrides=tuple(texts(config.hydra.overrides.task)))
            prepare(without_hydra(config), job)
            if context.command == "compare":
                (find_candidates if config.budget is not None else method_configs)(config, job)


def _check_package(package: str, config: DictConfig) -> None:
    if package != "_global_" and OmegaConf.select(config, package) is None:
        names = [str(key) for key in config if key != "hydra"]
        raise ConfigError(f"--package {package!r} names no part of the settings{did_you_mean(package, names)}")


def _explained(action: Callable[[], Any], failed: Failed) -> Any:
    """Run ``action``; what Hydra and OmegaConf raise becomes one sentence with the closest names."""
    try:
        return action()
    except Exception as error:
        sentence = explain(error, failed)
        if sentence is None or sentence is error:
            raise
        raise sentence from error


def _run(command: str, argv: Sequence[str], context: Context) -> None:
    """Hand over to ``hydra.main``."""
    sweep = Sweep()
    main = hydra.main(config_path=str(context.recipes.absolute()), config_name=command, version_base=VERSION_BASE)
    typed = sys.argv
    sys.argv = ["kdkit", *argv]
    try:
        main(functools.partial(_job, context, sweep))()
    finally:
        sys.argv = typed
    if sweep.failures and sweep.jobs > 1:
        raise _several(sweep) from sweep.failures[0]
    if sweep.failures:
        raise sweep.failures[0]


def _several(sweep: Sweep) -> Exception:
    failed = f"{len(sweep.failures)} of {sweep.jobs} jobs of the sweep failed, the first with: {sweep.failures[0]}"
    known = all(explain(error) is not None for error in sweep.failures)
    return KdkitError(failed) if known else RuntimeError(failed)


def _job(context: Context, sweep: Sweep, cfg: DictConfig) -> Any:
    """One job: check its settings once more (some sweepers invent them) and call the command.

    A failure is kept for the end of the sweep and returned to no one, because Hydra would print it in its own words;
    under launchers that run jobs elsewhere it has to be raised.
    """
    own = HydraConfig.get()
    multirun = own.mode == RunMode.MULTIRUN
    job = replace(
        context,
        overrides=tuple(texts(own.overrides.task)),
        multirun=multirun,
        job=int(own.job.num) if multirun else 0,
        output_dir=Path(own.runtime.output_dir) if multirun else None,
    )
    sweep.jobs += 1
    try:
        if multirun and "run_dir" in cfg and Path(own.sweep.dir) == Path(cfg.run_dir or own.sweep.dir):
            cfg.run_dir = str(job.output_dir)
            job = replace(job, overrides=tuple(word for word in job.overrides if not word.startswith("run_dir=")))
        with trust_of(context):
            import kdkit.run

            return getattr(kdkit.run, context.command)(prepare(cfg, job), job)
    except Exception as error:
        here = own.launcher["_target_"].startswith(_BASIC) and own.sweeper["_target_"].startswith(_BASIC)
        if multirun:
            print(f"kdkit: job {job.job} ({' '.join(job.overrides)}): {explain(error) or error}", file=sys.stderr)
            if not here:
                raise
        sweep.failures.append(error)
        return None


@contextmanager
def _full_errors() -> Iterator[None]:
    """Make Hydra raise errors instead of printing them and exiting; the command line prints them."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
