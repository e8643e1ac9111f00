"""What the losses cost: time and memory of forward and backward, beside peers and plain torch.

Each contender runs in a process of its own; they are asked in turn over several rounds, so that a noisy machine
disturbs all alike. Only ratios within one run mean something. Memory is the peak beyond the inputs, gradients included.

    python benchmarks/perf/losses.py dense small [--rounds 5] [--threads 2] [--only JSD] [--json FILE]

A group is a file ``_losses_<group>.py`` beside this one; ``_cases.py`` says what it looks like.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.perf._cases import Cases, Step

HERE = Path(__file__).parent
GROUPS = sorted(path.stem.removeprefix("_losses_") for path in HERE.glob("_losses_*.py"))
SHORT = 0.03
"""Seconds below which a step is repeated within a round."""


def cases_of(group: str) -> Cases:
    """The cases of a group, by title."""
    cases: Cases = importlib.import_module(f"benchmarks.perf._losses_{group}").CASES
    return cases


# ---- one contender -------------------------------------------------------------------------------------------------


def _status(key: str) -> float | None:
    """A line of this process's status, in MiB; ``None`` where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)


def _peak(step: Step) -> float | None:
    """MiB that one step needs beyond what is held before it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS:")
    step()
    after = _status("VmHWM:")
    return None if before is None or after is None else after - before


def _time(step: Step, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


def _serve(group: str, title: str, name: str, threads: int, connection: Connection) -> None:
    """Answer every request with the seconds of a step; the first answer is a description, or why there is none."""
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)
    try:
        step = cases_of(group)[title][name]()
        value = step()
    except ImportError:
        connection.send("not installed")
        return
    step()
    memory = _peak(step)
    repeats = max(1, math.ceil(SHORT / _time(step, 1)))
    connection.send({"value": value, "memory": memory})
    while connection.recv():
        connection.send(_time(step, repeats))


# ---- all of a case -------------------------------------------------------------------------------------------------


def measure(group: str, title: str, rounds: int, threads: int, beside: Sequence[str] = ()) -> dict[str, Any]:
    """Name of a contender -> its description and the seconds of each round, or a word on why it is missing.

    ``beside`` leaves only ours and those whose name contains one of its words."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, results = {}, {}, {}
    for name in cases_of(group)[title]:
        if beside and name != "kdkit" and not any(word in name for word in beside):
            continue
        here, there = context.Pipe()
        processes[name] = context.Process(target=_serve, args=(group, title, name, threads, there), daemon=True)
        processes[name].start()
        there.close()
        try:
            results[name] = here.recv()
        except EOFError:
            results[name] = "failed"
        if isinstance(results[name], dict):
            pipes[name], results[name]["seconds"] = here, []
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            results[name]["seconds"].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes.values():
        process.join()
    return results


def _mark(value: float | None, expected: float | None) -> str:
    if value is None or expected is None:
        return ""
    return "" if math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-7) else f"value {value:.6g}, not {expected:.6g}"


def report(title: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Print the table of a case; its rows."""
    print(f"\n{title}\n{'':28}{'ms':>10}{'/ kdkit':>9}{'MiB':>9}{'/ kdkit':>9}", flush=True)
    ours, rows = results["kdkit"], []
    for name, result in results.items():
        if isinstance(result, str) or isinstance(ours, str):
            print(f"{name:28}{result if isinstance(result, str) else '':>10}")
            continue
        seconds, memory = statistics.median(result["seconds"]), result["memory"]
        ratio = statistics.median(a / b for a, b in zip(result["seconds"], ours["seconds"], strict=True))
        space = f"{memory:9.1f}" if memory is not None else f"{'':9}"
        share = f"{memory / ours['memory']:9.2f}" if memory is not None and ours["memory"] else f"{'':9}"
        print(f"{name:28}{1000 * seconds:10.3f}{ratio:9.2f}{space}{share} {_mark(result['value'], ours['value'])}")
        rows.append({"case": title, "name": name, "seconds": result["seconds"], "ratio": ratio, "mib": memory})
    return rows


def _circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, when and where."""
    told = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    asked = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "title": " and ".join(options.groups).capitalize(),
        "command": " ".join([*options.groups, *(["--only", options.only] if options.only else [])]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit or "unknown",
        "torch": torch.__version__,
        "machine": f"{len(names) or os.cpu_count()} cores, {names[0] if names else platform.machine()}",
        "threads": options.threads or torch.get_num_threads(),
    }


def main() -> None:
    """Measure the groups that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="threads per process; torch's own choice by default")
    parser.add_argument("--only", default="", help="cases whose title contains this")
    parser.add_argument("--beside", nargs="*", default=(), help="only contenders whose name contains one of these")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for group in options.groups:
        for title in cases_of(group):
            if options.only in title:
                rows += report(title, measure(group, title, options.rounds, options.threads, options.beside))
    if options.json is not None:
        options.json.write_text(json.dumps({**_circumstances(options), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
