"""What the results of a table were made with, session by session: command, date, commit, hardware, time."""

from __future__ import annotations

import json
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdkit._files import write_json
from kdkit._run.folder import run_environment
from kdkit.report._format import seconds_text

__all__ = ["read_facts", "session", "shown", "told", "unfinished"]

_FILE = "table.json"
_PLACES = ("out", "data_dir", "data.root")


def shown(words: Sequence[str]) -> str:
    """The command for somebody else: where a folder of this machine was given, ``FOLDER`` stands."""
    told = []
    for word in words:
        key, equals, value = word.partition("=")
        private = equals and key.lstrip("+~") in _PLACES and Path(value).is_absolute()
        told.append(f"{key}=FOLDER" if private else word)
    return shlex.join(["python", "-m", "benchmarks.tables", *told])


def read_facts(folder: Path) -> dict[str, Any]:
    """``table.json``, or nothing."""
    path = folder / _FILE
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


@contextmanager
def session(
    folder: Path, table: str, words: Sequence[str], *, workers: int, cells: int, threads: Any, jobs: str | None = None
) -> Iterator[Callable[[], None]]:
    """Write down a session at its beginning, and how long it took at its end.

    What comes out is to be called after every cell: it writes down the time so far, for a session that is killed.

    Args:
        folder: of the results.
        table: its name.
        words: of the command line.
        workers: cells at a time.
        cells: that are left to be run.
        threads: CPU threads of a cell; ``None`` where torch decides.
        jobs: where cells are jobs of a cluster, what these are given; this machine is then none of the hardware.
    """
    facts = read_facts(folder)
    sessions = [*facts.get("sessions", []), _environment(words, workers, cells, threads) | _cluster(jobs)]
    begin = time.monotonic()

    def write() -> None:
        sessions[-1]["seconds"] = round(time.monotonic() - begin, 1)
        write_json(folder / _FILE, {"table": table, "sessions": sessions})

    try:
        write()
        yield write
    finally:
        write()


def _environment(words: Sequence[str], workers: int, cells: int, threads: Any) -> dict[str, Any]:
    known = run_environment(shown(words))
    commit = known["commit"]
    return {
        "command": known["command"],
        "date": known["date"],
        "commit": commit.rstrip("+") if commit else None,
        "local_changes": commit.endswith("+") if commit else None,
        "kdkit": known["kdkit"],
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpus": known["cpus"],
        "workers": workers,
        "threads": threads,
        "cells": cells,
        "seconds": None,
        "python": known["python"],
        "platform": platform.system(),
        "packages": known["packages"],
    }


def _cluster(jobs: str | None) -> dict[str, Any]:
    return {} if jobs is None else {"jobs": jobs, "processor": None, "gpu": None, "cpus": None}


def _processor() -> str:
    """The model of the processor, where the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def told(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value for people; a line with several values where the sessions differ."""
    sessions = facts.get("sessions", [])
    if not sessions:
        return []
    seconds = [each["seconds"] for each in sessions]
    known = [value for value in seconds if value is not None]
    hardware = [_hardware(each) for each in sessions]
    versions = [
        f"kdkit {each['kdkit']}, torch {each['packages'].get('torch', '?')}, Python {each['python']}"
        for each in sessions
    ]
    commits = [
        f"{each['commit'] or 'unknown'}{' with local changes' if each['local_changes'] else ''}" for each in sessions
    ]
    time_text = seconds_text(sum(known)) if known else "unknown"
    if len(sessions) > 1:
        time_text += (
            f" in {len(known)} of {len(sessions)} sessions"
            if len(known) < len(sessions)
            else f" in {len(sessions)} sessions"
        )
    return [
        ("date", _different([str(each["date"])[:16].replace("T", " ") + " UTC" for each in sessions])),
        ("commit", _different(commits)),
        ("hardware", _different(hardware)),
        ("versions", _different(versions)),
        ("wall time", time_text),
    ]


def unfinished(facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where the largest session was stopped before its end; else nothing."""
    planned = max((each["cells"] for each in facts.get("sessions", [])), default=0)
    done = len({(each["pair"], each["method"], each["seed"]) for each in records if each["status"] == "ok"})
    if done >= planned:
        return ""
    return (
        f"Unfinished: {done} of {planned} cells have been run. n says how many seeds a row has; too few show nothing."
    )


def _hardware(facts: Mapping[str, Any]) -> str:
    if facts.get("jobs"):
        return f"{facts['workers']} jobs at a time, {facts['jobs']}"
    parts = [facts["gpu"]] if facts["gpu"] else []
    parts.append(f"{facts['processor']}, {facts['cpus']} cores")
    threads = (
        f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}" if facts["threads"] else "torch's threads"
    )
    return ", ".join([*parts, f"{facts['workers']} cells at a time with {threads} each"])


def _different(texts: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
