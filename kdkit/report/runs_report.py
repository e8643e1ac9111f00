"""Reports for whatever the command line was given: runs, comparisons, several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit.errors import InputError
from kdkit.report import compare_plots, plots
from kdkit.report._format import (
    count_text,
    difference_text,
    finite,
    flatten,
    join,
    metric,
    milliseconds_text,
    seconds_text,
    spread_text,
    value_text,
)
from kdkit.report._page import Picture, write_page
from kdkit.report._run import ALONE, DISTILLED, TEACHER, Run, read_run
from kdkit.report.compare_report import leaderboard_line, write_compare_report
from kdkit.report.leaderboard import Row, conclude, how_tested, summarize, table_digits, table_header
from kdkit.report.run_report import write_report

__all__ = ["write_reports"]

_APART = ("seed", "run_dir", "resume", "name")
_COLUMNS = ("run", "network", "{metric}", "alone", "difference", "teacher", "ECE", "parameters", "latency", "time")


def write_reports(paths: Iterable[str | Path]) -> list[Path]:
    """Write the report of every run and comparison, and one page with the runs side by side when there are several.

    Args:
        paths: run folders and compare folders, in any mix.

    Returns:
        The HTML files, in the order of ``paths``; with two or more runs the last is ``comparison.html`` (beside it
        ``comparison.md``), in the deepest folder that holds all of the runs.

    Raises:
        InputError: when a folder is missing or incomplete, or the runs have different primary metrics; nothing is
            written then.
    """
    folders = list(dict.fromkeys(Path(path) for path in paths))
    if not folders:
        raise InputError("report: paths must name at least one run, got none; pass the folder that kdkit printed")
    runs = {folder: read_run(folder) for folder in folders if not _is_comparison(folder)}
    primaries = {run.primary.name for run in runs.values()}
    if len(primaries) > 1:
        raise InputError(
            f"report: runs side by side must share one primary metric, got {join(sorted(primaries))}; "
            "report them in separate calls"
        )
    written = [write_report(folder) if folder in runs else write_compare_report(folder) for folder in folders]
    if len(runs) > 1:
        written.append(_write_comparison(list(runs.values())))
    return written


def _is_comparison(folder: Path) -> bool:
    return (folder / "compare.json").exists()


def _write_comparison(runs: Sequence[Run]) -> Path:
    parent = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    labels = _labels(runs)
    rows = _over_seeds(runs)
    pictures = _pictures(runs, labels, rows)
    return write_page(parent, "comparison", "runs", _content(runs, labels, rows, parent), pictures)


def _content(runs: Sequence[Run], labels: Sequence[str], rows: Sequence[Row], parent: Path) -> dict[str, Any]:
    primary = runs[0].primary
    fingerprints = {run.data.get("fingerprint") for run in runs}
    notes = []
    if len(fingerprints) > 1:
        notes.append("These runs did not all see the same data (their fingerprints differ), so compare them with care.")
    lines = [_line(run, label, parent) for run, label in zip(runs, labels)]
    keep = [i for i in range(len(_COLUMNS)) if i < 3 or any(line["cells"][i]["text"] != "–" for line in lines)]
    for line in lines:
        line["cells"] = [line["cells"][i] for i in keep]
    digits = table_digits(rows)
    said = _said(rows) if rows else []
    return {
        "title": f"{len(runs)} runs",
        "kicker": "Runs side by side",
        "facts": [
            *sorted({str(run.data.get("name")) for run in runs if run.data.get("name")}),
            f"judged by {primary.label}",
        ],
        "header": [_COLUMNS[i].format(metric=primary.label) for i in keep],
        "lines": lines,
        "notes": notes,
        "groups": [leaderboard_line(row, digits) for row in rows],
        "group_header": ["settings", *table_header(rows)[1:]],
        "said": said,
        "commands": [
            (line["label"], str(run.results.get("command")))
            for line, run in zip(lines, runs)
            if run.results.get("command")
        ],
    }


def _line(run: Run, label: str, parent: Path) -> dict[str, Any]:
    main = run.main
    value, alone, teacher = (
        finite((main.get("metrics") or {}).get(run.primary.name)),
        run.value(ALONE),
        run.value(TEACHER),
    )
    if main.get("name") != DISTILLED:
        alone = None
    difference = value - alone if value is not None and alone is not None else None
    ece, seconds = (main.get("metrics") or {}).get("ece"), main.get("seconds")
    cells = [
        (label, label),
        (str(main.get("network") or "–"), str(main.get("network") or "")),
        (value_text(run.primary, value, run.digits), value),
        (value_text(run.primary, alone, run.digits), alone),
        (difference_text(run.primary, difference, run.digits), difference),
        (value_text(run.primary, teacher, run.digits), teacher),
        (value_text(metric("ece"), ece), finite(ece)),
        (count_text(main.get("parameters")), finite(main.get("parameters"))),
        (milliseconds_text(main.get("latency_ms")), finite(main.get("latency_ms"))),
        (seconds_text(seconds), finite(seconds)),
    ]
    return {
        "label": label,
        "link": Path(os.path.relpath(run.path.resolve() / "report.html", parent)).as_posix(),
        "cells": [{"text": text, "key": "" if key is None else key} for text, key in cells],
    }


def _labels(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: losses, settings that differ, seed; the folder's name when that is not enough."""
    labels = [", ".join([part, *_seed_part(run)]) for part, run in zip(_settings(runs), runs)]
    return [
        label if labels.count(label) == 1 else f"{label} [{run.path.resolve().name}]"
        for label, run in zip(labels, runs)
    ]


def _seed_part(run: Run) -> list[str]:
    return [f"seed {run.results['seed']}"] if run.results.get("seed") is not None else []


def _settings(runs: Sequence[Run]) -> list[str]:
    """Losses of each run, and the values of the settings that all have and that differ."""
    flat = [flatten({key: value for key, value in run.config.items() if key not in _APART}) for run in runs]
    shared = [name for name in flat[0] if all(name in settings for settings in flat)]
    differing = [name for name in shared if len({repr(settings[name]) for settings in flat}) > 1]
    texts = []
    for run, settings in zip(runs, flat):
        losses = " + ".join(run.results.get("losses") or {}) or run.name
        parts = [losses, *(f"{name}={settings[name]}" for name in differing[:4])]
        texts.append(", ".join(parts))
    return texts


def _over_seeds(runs: Sequence[Run]) -> list[Row]:
    """Runs that differ in their seed only, taken together and paired with their students alone."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        config = flatten({name: value for name, value in run.config.items() if name not in _APART})
        key = repr(sorted(config.items(), key=lambda item: item[0])) if config else str(run.path)
        groups.setdefault(f"{key} {run.data.get('fingerprint')}", []).append(index)
    settings = _settings(runs)
    rows = []
    for members in groups.values():
        chosen = [runs[index] for index in members]
        if len(chosen) < 2 or not all(run.row(ALONE) and run.row(DISTILLED) for run in chosen):
            continue
        cells = [_cell(run, name) for run in chosen for name in (ALONE, DISTILLED)]
        primary = chosen[0].primary
        found = summarize(cells, ALONE, primary.name, bool(primary.higher_is_better))
        row = next(row for row in found if row.method == DISTILLED)
        row.method = settings[members[0]]
        if row.n:
            rows.append(row)
    return conclude(rows)


def _cell(run: Run, name: str) -> Mapping[str, Any]:
    row = run.row(name) or {}
    return {
        "method": name,
        "seed": run.results.get("seed"),
        "metrics": row.get("metrics"),
        "seconds": row.get("seconds"),
    }


def _said(rows: Sequence[Row]) -> list[str]:
    of, digits = metric(rows[0].metric, rows[0].higher_is_better), table_digits(rows)
    said = [
        f"{row.method}: {spread_text(of, row.mean, row.std, digits)} over {row.n} seeds, "
        f"{difference_text(of, row.difference, digits)} against the same student alone; "
        + {"helps": "it helps", "hurts": "it hurts"}.get(row.verdict, row.verdict)
        + (f" ({row.note})." if row.note else ".")
        for row in rows
    ]
    return [*said, how_tested(sum(row.p is not None for row in rows), "the student alone")]


def _pictures(runs: Sequence[Run], labels: Sequence[str], rows: Sequence[Row]) -> list[Picture]:
    lines: dict[str, plots.Curve] = {}
    for run, label in zip(runs, labels):
        points = run.curves().get(str(run.main.get("name")))
        if points and len(lines) < len(plots.PALETTE):
            lines[label] = points
    drawn = (
        plots.curves(lines, runs[0].primary, name="comparison-validation", wide=True),
        compare_plots.differences(rows, name="comparison-differences"),
    )
    return [picture for picture in drawn if picture is not None]
