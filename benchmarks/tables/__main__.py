"""python -m benchmarks.tables table=cifar100_crd_same rows=kd,dkd seeds=5 data_dir=FOLDER

Runs a paper's table, or the part of it that is asked for, and puts the published values beside ours.

  table=NAME        which table; without it, a list of them
  rows=a,b          methods (default: all that have a published value)
  pairs=t/s,...     teacher/student pairs (default: all)
  seeds=5           number of seeds, or a list: seeds=[0,1,2]
  data_dir=FOLDER   where the data set is (data.root)
  out=FOLDER        default runs/tables/NAME; what is in it is not run again
  workers=1         cells at a time; with several GPUs each worker has one, auto: a worker per GPU
  launcher=slurm    each cell is a job of a SLURM cluster (or local: of this machine), workers of them at a time
  launcher.KEY=V    of those jobs, as submitit calls it: timeout_min, gpus_per_node, mem_gb, slurm_partition, ...
  KEY=VALUE         any other setting of kdkit distill, for all cells: engine.precision=bf16
  --dry-run         compose every cell, measure a few steps, say what the table costs
  --smoke           two steps of every cell on made-up data of the true shape
  --report          only write the pages again from results.jsonl
  --publish         the same, and copy what is small into benchmarks/results/NAME
  --docs            write docs/results.md from all of benchmarks/results; takes no table
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["main"]

_FLAGS = ("--dry-run", "--smoke", "--report", "--publish", "--docs")
_OWN = ("table", "rows", "pairs", "seeds", "data_dir", "out", "workers", "launcher")


@dataclass(slots=True)
class Options:
    """What was typed."""

    own: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)


def parse(words: Sequence[str]) -> Options:
    """The command line.

    Raises:
        ConfigError: for a word that is neither.
    """
    from kdkit.errors import ConfigError, did_you_mean

    options = Options()
    for word in words:
        key, equals, value = word.partition("=")
        if word in _FLAGS:
            options.flags.add(word)
        elif word.startswith("--"):
            raise ConfigError(f"there is no option {word!r}{did_you_mean(word, _FLAGS)}")
        elif not equals:
            raise ConfigError(f"{word!r} must be KEY=VALUE, for example table=cifar100_crd_same; --help says more")
        elif key in _OWN or key.startswith("launcher."):
            options.own[key] = value
        elif "." not in key.lstrip("+~") and key.lstrip("+~") not in _groups():
            raise ConfigError(f"there is no option {key!r}{did_you_mean(key, _OWN)}")
        else:
            options.settings.append(word)
    return options


def _groups() -> tuple[str, ...]:
    return ("optim", "scheduler", "engine", "balance", "task", "data")


def seeds_of(text: str) -> list[int]:
    """``5`` -> 0 to 4; ``[3,4]`` or ``3,4`` -> these.

    Raises:
        ConfigError: for anything else.
    """
    from kdkit.errors import ConfigError

    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(
            f"seeds must be a number like seeds=5, or a list of different ones like seeds=[0,1], got {text!r}"
        )
    numbers = [int(part) for part in parts]
    if len(numbers) == 1 and not text.startswith("["):
        if numbers[0] < 1:
            raise ConfigError(f"seeds must be at least 1, got {text!r}")
        return list(range(numbers[0]))
    return numbers


def run(options: Options) -> int:
    """Do what was asked; the exit status."""
    from benchmarks.tables._cells import make_plan, outline
    from benchmarks.tables._cluster import JOBS, launcher_of
    from benchmarks.tables._table import choose, load, names
    from kdkit.errors import ConfigError

    if "--docs" in options.flags:
        from benchmarks.tables._published import PAGE, results_page
        from kdkit._files import write_atomic

        print(f"page: {write_atomic(PAGE, results_page())}")
        return 0
    if "table" not in options.own:
        if options.own or options.settings or options.flags - {"--smoke"}:
            raise ConfigError(f"table must be given; choose from {', '.join(names())}")
        if "--smoke" in options.flags:
            return _smoke_all(names())
        _list(names())
        return 0
    table = load(options.own["table"])
    methods = choose(options.own.get("rows"), table.methods, "rows")
    pairs = choose(options.own.get("pairs"), table.pairs, "pairs")
    extra = [f"data.root={options.own['data_dir']}"] if "data_dir" in options.own else []
    made_up = bool(options.flags & {"--smoke", "--dry-run"})
    folder = Path(options.own.get("out", f"runs/tables/{table.name}"))
    if options.flags & {"--report", "--publish"}:
        return _report(outline(table, pairs, methods), folder, publish="--publish" in options.flags)
    plan = make_plan(table, pairs, methods, [*extra, *options.settings], made_up=made_up)
    seeds = seeds_of(options.own.get("seeds", str(table.runs or 1)))
    launcher = launcher_of(options.own)
    workers = _workers(options.own.get("workers", "1" if launcher is None else str(JOBS)))
    if "--smoke" in options.flags:
        return _smoke(plan, workers)
    if "--dry-run" in options.flags:
        from benchmarks.tables._cost import print_cost

        print_cost(plan, len(seeds))
        return 0
    return _run(plan, seeds, folder, workers, launcher)


def _workers(text: str) -> int:
    from kdkit._run.devices import visible_gpus

    return max(len(visible_gpus()), 1) if text == "auto" else _whole(text, "workers")


def _whole(text: str, name: str) -> int:
    from kdkit.errors import ConfigError

    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {text!r}")
    return int(text)


def _list(names: Sequence[str]) -> None:
    from benchmarks.tables._table import load

    for name in names:
        table = load(name)
        values = sum(len(method.published) for method in table.methods.values())
        print(f"{name:28} {len(table.pairs):3} pairs {len(table.methods):3} methods {values:4} values  {table.title}")


def _run(plan: Any, seeds: Sequence[int], folder: Path, workers: int, launcher: Any) -> int:
    from benchmarks.tables._facts import session
    from benchmarks.tables._run import finished, run_all

    cells = plan.folders(folder, seeds)
    done = finished(folder, cells)
    folder.mkdir(parents=True, exist_ok=True)
    left, failed = len(cells) - len(done), 0
    threads = plan.cells[0].settings["engine"]["threads"] if plan.cells else None
    if left:
        jobs = launcher.described() if launcher is not None else None
        facts: dict[str, Any] = {"workers": workers, "cells": left, "threads": threads, "jobs": jobs}
        with session(folder, plan.table.name, sys.argv[1:], **facts) as after:
            failed = run_all(cells, folder, workers, done, after, launcher)
    else:
        print(f"{len(cells)} cells, all of them finished before")
    _report(plan, folder)
    if failed:
        print(f"kdkit: {failed} of {len(cells)} cells failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _report(plan: Any, folder: Path, *, publish: bool = False) -> int:
    from benchmarks.tables._published import publish_results, read_results
    from benchmarks.tables._write import write_all
    from kdkit.errors import ConfigError

    if not (folder / "results.jsonl").is_file():
        raise ConfigError(f"out={folder} has no results.jsonl; run the table first, or correct the path")
    print(f"report: {write_all(plan, *read_results(folder), folder)}", flush=True)
    if publish:
        print(f"results: {publish_results(plan, folder)}", flush=True)
    return 0


def _smoke(plan: Any, workers: int) -> int:
    from tempfile import TemporaryDirectory

    from benchmarks.tables._run import smoke

    with TemporaryDirectory() as scratch:
        cells = plan.folders(Path(scratch), [0])
        failed = smoke(cells, workers)
    print(f"{plan.table.name}: {len(cells) - len(failed)} of {len(cells)} cells ran, {len(plan.missing)} cannot be run")
    for record in failed:
        print(f"  {record['pair']} | {record['method']}: {record['error']}")
    return 1 if failed else 0


def _smoke_all(names: Sequence[str]) -> int:
    from benchmarks.tables._cells import make_plan
    from benchmarks.tables._table import load

    status = 0
    for name in names:
        table = load(name)
        status |= _smoke(make_plan(table, list(table.pairs), list(table.methods), made_up=True), 1)
    return status


def main() -> int:
    """The command; errors of the user's are one sentence and exit status 2."""
    from kdkit.errors import InputError, KdkitError

    if any(word in ("-h", "--help") for word in sys.argv[1:]):
        print(__doc__)
        return 0
    try:
        return run(parse(sys.argv[1:]))
    except InputError as error:
        print(f"kdkit: {error}", file=sys.stderr)
        return 2
    except KdkitError as error:
        print(f"kdkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("kdkit: stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
