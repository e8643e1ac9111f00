"""The report of one run: what was done, what came out, how to repeat it and how to use the student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.report import plots
from kdkit.report._format import (
    METRICS,
    NOTHING,
    Metric,
    bytes_text,
    count_text,
    difference_text,
    finite,
    flatten,
    metric,
    milliseconds_text,
    seconds_text,
    value_text,
)
from kdkit.report._page import Picture, write_page
from kdkit.report._run import ALONE, DISTILLED, TEACHER, Run, read_run
from kdkit.report._words import caveats, outcome, story

__all__ = ["environment_rows", "metric_label", "metric_names", "write_report"]

_COSTS = (
    ("parameters", "parameters", "weights to store", count_text),
    ("flops", "FLOPs", "operations for one sample", count_text),
    ("latency_ms", "latency", "one sample, measured on this machine", milliseconds_text),
    ("file_bytes", "file size", "weights on disk", bytes_text),
)

_FILES = (
    ("report.html", "this report"),
    ("report.md", "the same as Markdown, pictures in plots/"),
    ("results.json", "every number of the table above"),
    ("metrics.jsonl", "one line per logged step and evaluation"),
    ("config.yaml", "the resolved settings"),
    ("environment.json", "versions, machine, commit"),
    ("checkpoints", "to continue the run with resume="),
    ("student", "the exported student: safetensors and a model card, usable without kdkit"),
    ("tensorboard", "the curves for TensorBoard"),
)


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` (self-contained) and ``report.md`` (pictures in ``plots/``) into a run folder.

    Reads ``results.json`` and, where they are there, ``config.yaml``, ``environment.json``, ``metrics.jsonl`` and
    the model card in ``student/``.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: when the folder is no finished run, or cannot be written.
    """
    run = read_run(run_dir)
    return write_page(run.path, "report", "run", _content(run), _pictures(run))


def metric_names(run: Run) -> list[str]:
    """Metrics that some row has, the primary one first, known ones in their usual order."""
    present = {
        name for row in run.rows for name, value in (row.get("metrics") or {}).items() if finite(value) is not None
    }
    known = [name for name in METRICS if name in present]
    names = [run.primary.name, *known, *sorted(present)]
    return list(dict.fromkeys(name for name in names if name in present or name == run.primary.name))


def metric_label(run: Run, of: Metric) -> str:
    """The label of a metric in this run's task."""
    return f"next-token {of.label}" if run.results.get("task") == "causal_lm" and of.name == "accuracy" else of.label


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """The environment as name and text."""
    rows = []
    for name, value in flatten(run.environment).items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if value not in (None, "", [], {}):
            rows.append((name.replace("_", " "), text))
    return rows


def _content(run: Run) -> dict[str, Any]:
    config = run.path / "config.yaml"
    return {
        "title": run.name,
        "kicker": "Distillation run" if run.distilled else "Training run",
        "facts": _facts(run),
        "cards": _cards(run),
        "story": " ".join(story(run)),
        "outcome": " ".join(outcome(run)),
        "caveats": " ".join(caveats(run)),
        "columns": [_column(row) for row in run.rows],
        "lines": _metric_lines(run) + _cost_lines(run),
        "has_difference": _compares(run),
        "split": "test" if run.data.get("test") or not run.data else "held-out",
        "origins": [(str(row.get("name")), str(row["origin"])) for row in run.rows if row.get("origin")],
        "notes": _notes(run.results.get("summary")),
        "command": str(run.results.get("command") or ""),
        "data": _data_rows(run),
        "environment": environment_rows(run),
        "config": config.read_text(encoding="utf-8").strip() if config.exists() else "",
        "files": [(name, text) for name, text in _FILES if name.startswith("report.") or (run.path / name).exists()],
        "snippet": run.snippet,
    }


def _notes(summary: Any) -> list[tuple[str, str]]:
    if isinstance(summary, Mapping):
        return [(name.replace("_", " "), str(value)) for name, value in flatten(summary).items()]
    return [("summary", str(summary))] if summary else []


def _facts(run: Run) -> list[str]:
    facts = [str(run.data["name"])] if run.data.get("name") else []
    if run.results.get("task"):
        facts.append(str(run.results["task"]).replace("_", " "))
    losses = run.results.get("losses") or {}
    if losses:
        facts.append(" + ".join(losses))
    if run.results.get("seed") is not None:
        facts.append(f"seed {run.results['seed']}")
    if finite(run.results.get("seconds")) is not None:
        facts.append(seconds_text(run.results["seconds"]))
    return facts


def _cards(run: Run) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = []
    for row in run.rows:
        value = finite((row.get("metrics") or {}).get(run.primary.name))
        card = {
            "name": str(row.get("name")),
            "value": value_text(run.primary, value, run.digits),
            "label": metric_label(run, run.primary),
            "detail": str(row.get("network") or ""),
            "size": f"{count_text(row.get('parameters'))} parameters" if finite(row.get("parameters")) else "",
            "color": plots.color_of(str(row.get("name")), len(cards)),
            "difference": "",
            "good": False,
        }
        alone = run.value(ALONE)
        if row.get("name") == DISTILLED and value is not None and alone is not None:
            card["difference"] = f"{difference_text(run.primary, value - alone, run.digits)} against the student alone"
            card["good"] = value != alone and (value > alone) == bool(run.primary.higher_is_better)
        cards.append(card)
    return cards


def _column(row: Mapping[str, Any]) -> dict[str, str]:
    return {"name": str(row.get("name")), "network": str(row.get("network") or "")}


def _compares(run: Run) -> bool:
    return run.row(ALONE) is not None and run.row(DISTILLED) is not None


def _metric_lines(run: Run) -> list[dict[str, Any]]:
    lines = []
    for name in metric_names(run):
        of = run.primary if name == run.primary.name else metric(name)
        values = [finite((row.get("metrics") or {}).get(name)) for row in run.rows]
        if name == "agreement":
            values = [None if row.get("name") == TEACHER else value for row, value in zip(run.rows, values)]
        texts = [value_text(of, value, run.digits) for value in values]
        line = _line(metric_label(run, of), of.meaning, _marked(values, texts, of.higher_is_better))
        line["primary"] = of is run.primary
        by_name = {row.get("name"): value for row, value in zip(run.rows, values)}
        distilled, alone = by_name.get(DISTILLED), by_name.get(ALONE)
        if distilled is not None and alone is not None:
            line["difference"] = difference_text(of, distilled - alone, run.digits)
            if of.higher_is_better is not None and not line["difference"].startswith("±"):
                line["good"] = (distilled > alone) == of.higher_is_better
        lines.append(line)
    return lines


def _cost_lines(run: Run) -> list[dict[str, Any]]:
    lines = []
    for key, label, meaning, text in _COSTS:
        values = [finite(row.get(key)) for row in run.rows]
        if any(value is not None for value in values):
            cells = _marked(values, [text(value) for value in values], False)
            lines.append(_line(label, meaning, cells))
    seconds = [seconds_text(row.get("seconds")) for row in run.rows]
    if any(text != NOTHING for text in seconds):
        cells = [{"text": text, "best": False} for text in seconds]
        lines.append(_line("training time", "on this machine", cells))
    return lines


def _line(label: str, meaning: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {"label": label, "meaning": meaning, "primary": False, "cells": cells, "difference": "", "good": None}


def _marked(values: list[float | None], texts: list[str], higher_is_better: bool | None) -> list[dict[str, Any]]:
    """Cells with the best ones marked: those that read like the best value, unless all do."""
    present = [(value, text) for value, text in zip(values, texts) if value is not None]
    if higher_is_better is None or len({text for _, text in present}) < 2:
        return [{"text": text, "best": False} for text in texts]
    best = (max if higher_is_better else min)(present)[1]
    return [{"text": text, "best": value is not None and text == best} for value, text in zip(values, texts)]


def _data_rows(run: Run) -> list[tuple[str, str]]:
    rows = [("data", str(run.data["name"]))] if run.data.get("name") else []
    sizes = [f"{int(size):,} {split}" for split in ("train", "val", "test") if (size := run.data.get(split))]
    if sizes:
        rows.append(("samples", ", ".join(sizes)))
    if run.data.get("fingerprint"):
        rows.append(("fingerprint", str(run.data["fingerprint"])))
    return rows


def _pictures(run: Run) -> list[Picture]:
    curves = run.curves()
    levels = {}
    if not run.results.get("online") and len(curves) > 1 and curves.get(TEACHER):
        levels[TEACHER] = curves.pop(TEACHER)[-1][1]
    bins = {
        str(row.get("name")): entry
        for row in run.rows
        if isinstance(entry := (row.get("extras") or {}).get("reliability"), dict)
    }
    drawn = (
        plots.curves(curves, run.primary, levels),
        plots.loss_terms(run.loss_curves()),
        plots.reliability(bins),
    )
    return [picture for picture in drawn if picture is not None]
