"""What a table costs: a few measured steps of each pair on made-up data, scaled to all of its cells."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.tables._cells import ALONE, Plan, Planned
from benchmarks.tables._data import SHAPES, data_name
from benchmarks.tables._run import CONTEXT, run_smoke, small
from kdkit._run.cells import Cell
from kdkit.errors import KdkitError

__all__ = ["print_cost"]

SIZES = {"CIFAR10": 50_000, "CIFAR100": 50_000, "Digits": 1_297, "FashionMNIST": 60_000, "ImageNet": 1_281_167}
"""Training images."""

GLUE = {"cola": 8551, "sst2": 67_349, "mrpc": 3668, "qqp": 363_846, "mnli": 392_702, "qnli": 104_743, "rte": 2490}
"""Training texts."""

_STEPS, _FEW_STEPS = (4, 12), (1, 3)
_LARGE, _TEXTS = 8, 1
"""Samples of a measured batch of large images, or of texts, on a CPU; the time is taken to grow with the batch."""


def print_cost(plan: Plan, seeds: int) -> None:
    """Print what there is to run and how long it would take on this machine.

    Each pair is measured with its first method, its student and its teacher alone; the difference between two runs of
    different length is the time of the steps that one has more.
    """
    table, device = plan.table, "one GPU" if torch.cuda.is_available() else "this machine's CPU"
    print(f"{table.title}\n{len(plan.cells)} cells and {seeds} seeds; {len(plan.missing)} cannot be run", flush=True)
    for (pair, method), reason in plan.missing.items():
        print(f"  {pair} | {method}: {reason}")
    total = 0.0
    for pair in dict.fromkeys(planned.pair for planned in plan.cells):
        own = [planned for planned in plan.cells if planned.pair == pair]
        methods = [planned for planned in own if planned.method != ALONE]
        hours = len(methods) * seeds * _hours(methods[0].settings)
        alone = next((planned for planned in own if planned.method == ALONE), None)
        hours += seeds * _hours(alone.settings) if alone is not None else 0.0
        teacher = _hours(_teacher_alone(methods[0]))
        print(f"  {pair}: {len(own)} cells, about {hours:.2f} h, and {teacher:.2f} h for the teacher", flush=True)
        total += hours + teacher
    print(f"about {total:.1f} h on {device}, one cell at a time (teachers that two pairs share are counted twice)")


def _hours(settings: dict[str, Any]) -> float:
    """Of one training with these settings."""
    engine = settings["engine"]
    per_sample = _seconds_per_sample(settings)
    name = data_name(settings)
    samples = GLUE[settings["data"]["subset"]] if name == "GLUE" else SIZES.get(name, 0)
    samples = int(settings["data"].get("train_size") or samples)
    if engine["max_steps"]:
        return per_sample * int(engine["max_steps"]) * int(engine["batch_size"]) / 3600
    return per_sample * samples * float(engine["epochs"]) / 3600


def _seconds_per_sample(settings: dict[str, Any]) -> float:
    on_gpu, batch, lengths = torch.cuda.is_available(), int(settings["engine"]["batch_size"]), _STEPS
    if not on_gpu and data_name(settings) == "GLUE":
        batch, lengths = _TEXTS, _FEW_STEPS
    if not on_gpu and SHAPES.get(data_name(settings), (0, 0, 0))[2] > 64:
        batch = min(batch, _LARGE)
    seconds = []
    for steps in lengths:
        cut = small(settings)
        cut["engine"].update({"max_steps": steps, "batch_size": batch, "device": "auto"})
        if on_gpu:
            cut["engine"]["precision"] = settings["engine"]["precision"]
        with TemporaryDirectory() as scratch:
            record = run_smoke(Cell("cost|cost", 0, cut, str(Path(scratch) / "cell")), CONTEXT)
        if record["status"] != "ok":
            raise KdkitError(f"a step could not be measured: {record['error']}")
        seconds.append(float(record["seconds"]))
    return max(seconds[1] - seconds[0], 0.0) / (lengths[1] - lengths[0]) / batch


def _teacher_alone(planned: Planned) -> dict[str, Any]:
    """The training of the teacher, as far as its time goes."""
    settings: dict[str, Any] = json.loads(json.dumps(planned.settings))
    teacher = settings["teacher"]
    settings["student"] = {
        **settings["student"],
        **{key: teacher.get(key) for key in settings["student"]},
        "weights": None,
    }
    epochs, steps = teacher["train"].get("epochs"), teacher["train"].get("max_steps")
    settings["engine"].update({"epochs": epochs, "max_steps": steps, "batch_size": teacher["train"]["batch_size"]})
    ce = {"_target_": "kdkit.losses.CELoss"}
    return {
        **settings,
        "loss": {"ce": ce},
        "weights": {"ce": 1.0},
        "teacher": None,
        "features": {},
        "chain": {},
        "balance": None,
    }
