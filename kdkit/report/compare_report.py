"""The report of a comparison: which losses help, which do not, and how sure that is."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdkit._files import read_jsonl, write_atomic, write_json
from kdkit.errors import InputError
from kdkit.report import compare_plots
from kdkit.report._format import finite, flatten, metric, spread_text, value_text
from kdkit.report._page import Picture, write_page
from kdkit.report._run import read_json
from kdkit.report.leaderboard import Row, row_cells, sentences, summarize, table_digits, table_header
from kdkit.report.search_report import search_section, search_sentences
from kdkit.report.statistics import mean_std

__all__ = ["leaderboard_line", "write_compare_report"]

_SORT_KEYS = ("method", "mean", "difference", "difference_low", "p_corrected", "verdict", "ece", "seconds", "n")

_FILES = (
    ("report.html", "this report"),
    ("report.md", "the same as Markdown, pictures in plots/"),
    ("leaderboard.json", "the rows with every digit"),
    ("leaderboard.csv", "the same for a spreadsheet"),
    ("leaderboard.md", "the table alone"),
    ("results.jsonl", "one line per method and seed"),
    ("search.jsonl", "one line per training of the search"),
    ("winner/experiment/winner.yaml", "the settings of the winner"),
    ("compare.json", "what was compared, and how"),
)


def write_compare_report(folder: str | Path) -> Path:
    """Write ``leaderboard.json``, ``.csv``, ``.md``, ``report.html`` and ``report.md`` into a compare folder.

    Reads ``results.jsonl`` (one line per method and seed), ``compare.json`` (what was compared) and ``search.jsonl``
    (the trainings that a search chose by). A comparison that is under way gets a report of what is there; a search
    whose final has not begun gets one without a leaderboard.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: when one of the two is missing or lacks what the report needs, or the folder cannot be written.
    """
    folder = Path(folder)
    about, results = _read(folder)
    baseline, primary, higher = str(about["baseline"]), str(about["primary"]), bool(about.get("higher_is_better", True))
    begun = any(str(cell["method"]) == baseline for cell in results)
    rows = summarize(results, baseline, primary, higher) if begun or "search" not in about else []
    said = (sentences(rows) + _missing(about, results) if rows else []) + search_sentences(about, results)
    teacher = _teacher(results)
    section = search_section(about, read_jsonl(folder / "search.jsonl"), results)
    if rows:
        record = {
            "baseline": baseline,
            "primary": primary,
            "higher_is_better": rows[0].higher_is_better,
            "rows": [dataclasses.asdict(row) for row in rows],
            "teacher": {**(about.get("teacher") or {}), "metrics": teacher},
            "sentences": said,
        }
        write_json(folder / "leaderboard.json", record)
        write_atomic(folder / "leaderboard.csv", _csv(rows))
        write_atomic(folder / "leaderboard.md", _markdown(about, rows, said))
    content = {**_frame(about, rows, said, folder), "search": section, **_table(about, rows, teacher, results)}
    return write_page(folder, "report", "compare", content, _pictures(rows, teacher) if rows else [])


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not (folder / "compare.json").exists():
        raise InputError(
            f"report: a comparison holds compare.json, got {str(folder)!r} without one; pass the folder that "
            "kdkit compare printed"
        )
    about = read_json(folder / "compare.json")
    for name in ("baseline", "primary"):
        if not isinstance(about.get(name), str):
            raise InputError(
                f"report: compare.json must name its {name!r}, got {about.get(name)!r} in {folder}; "
                "run the comparison again"
            )
    results = [record for record in read_jsonl(folder / "results.jsonl") if "method" in record]
    begun = any(str(cell["method"]) == about["baseline"] for cell in results)
    known = not results or about["baseline"] in (about.get("methods") or {})
    if not begun and known and "search" not in about:
        raise InputError(
            f"report: results.jsonl must hold at least one cell of the baseline, {about['baseline']}, got none in "
            f"{folder}; wait for the first one, or run the comparison"
        )
    return about, results


def _missing(about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence on the cells that were planned and did not run."""
    planned = {(str(method), str(seed)) for method in about.get("methods") or [] for seed in about.get("seeds") or []}
    absent = planned - {(str(cell["method"]), str(cell.get("seed"))) for cell in results}
    if not absent:
        return []
    return [f"{len(absent)} of {len(planned)} cells have not run; this report covers the others."]


def _teacher(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The teacher's metrics, averaged over the cells that report them."""
    found: dict[str, list[float]] = {}
    for cell in results:
        for name, value in (cell.get("teacher_metrics") or {}).items():
            if finite(value) is not None:
                found.setdefault(name, []).append(float(value))
    return {name: mean_std(values)[0] or 0.0 for name, values in found.items()}


def _frame(about: Mapping[str, Any], rows: Sequence[Row], said: Sequence[str], folder: Path) -> dict[str, Any]:
    """What stands around the table."""
    data = about.get("data") or {}
    of = metric(str(about["primary"]), bool(about.get("higher_is_better", True)))
    return {
        "title": str(about.get("name") or "comparison"),
        "kicker": "Search" if "search" in about else "Comparison",
        "facts": _facts(data, rows, of.label),
        "headline": _headline(rows) if rows else "Nothing has been measured on the test split yet.",
        "said": said,
        "notes": [str(note) for note in about.get("notes") or []],
        "teacher": [
            (name.replace("_", " "), _text(value)) for name, value in flatten(about.get("teacher") or {}).items()
        ],
        "command": str(about.get("command") or ""),
        "data": [(name.replace("_", " "), _text(value)) for name, value in flatten(data).items()],
        "files": [(name, text) for name, text in _FILES if name.startswith("report.") or (folder / name).exists()],
    }


def _table(
    about: Mapping[str, Any], rows: Sequence[Row], teacher: Mapping[str, float], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The leaderboard, and every seed of it."""
    of = metric(str(about["primary"]), bool(about.get("higher_is_better", True)))
    seeds = sorted({seed for row in rows for seed in row.values}, key=lambda seed: (len(seed), seed))
    digits = table_digits(rows)
    return {
        "header": table_header(rows),
        "lines": [leaderboard_line(row, digits) for row in rows],
        "teacher_line": value_text(of, teacher.get(of.name), digits) if of.name in teacher else "",
        "seeds": seeds,
        "by_seed": [(row.method, [value_text(of, row.values.get(seed), digits) for seed in seeds]) for row in rows],
        "failures": [
            (str(cell["method"]), str(cell.get("seed")), str(cell.get("error") or f"no finite {of.label}"))
            for cell in _last(results)
            if cell.get("status", "ok") != "ok" or finite((cell.get("metrics") or {}).get(of.name)) is None
        ],
    }


def _facts(data: Mapping[str, Any], rows: Sequence[Row], label: str) -> list[str]:
    facts = [str(data["name"])] if data.get("name") else []
    if not rows:
        return [*facts, f"judged by {label}"]
    seeds = max(row.n + row.failed for row in rows)
    return [*facts, f"{len(rows)} methods", f"{seeds} seed{'s' if seeds != 1 else ''}", f"judged by {label}"]


def _headline(rows: Sequence[Row]) -> str:
    """The finding in one sentence."""
    reference = next(row for row in rows if row.is_baseline)
    of, digits = metric(reference.metric, reference.higher_is_better), table_digits(rows)
    best = next((row for row in rows if row.verdict == "helps"), None)
    tested = sum(row.p is not None for row in rows)
    base = f"{reference.method} ({spread_text(of, reference.mean, reference.std, digits)})"
    if best is not None:
        helped = sum(row.verdict == "helps" for row in rows)
        value = spread_text(of, best.mean, best.std, digits)
        return (
            f"{helped} of {tested} method{'s' if tested != 1 else ''} beat the baseline, {base}; "
            f"best is {best.method} with {value} {of.label}."
        )
    if tested:
        return f"No method was shown to beat the baseline, {base}."
    return f"Nothing could be tested against the baseline, {base}."


def leaderboard_line(row: Row, digits: int) -> dict[str, Any]:
    """A row as the templates want it: text and sort key of each cell, and the verdict's style."""
    keys = [getattr(row, name) for name in _SORT_KEYS]
    return {
        "row": row,
        "kind": row.verdict.split()[0],
        "note": row.note,
        "losses": " + ".join(row.losses),
        "cells": [{"text": text, "key": "" if key is None else key} for text, key in zip(row_cells(row, digits), keys)],
    }


def _last(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last outcome of each cell."""
    return list({(str(cell["method"]), str(cell.get("seed"))): cell for cell in results}.values())


def _pictures(rows: Sequence[Row], teacher: Mapping[str, float]) -> list[Picture]:
    primary, ece = teacher.get(rows[0].metric), teacher.get("ece")
    drawn = (
        compare_plots.seeds(rows, primary),
        compare_plots.differences(rows),
        compare_plots.calibration(rows, None if primary is None or ece is None else (primary, ece)),
        compare_plots.times(rows),
    )
    return [picture for picture in drawn if picture is not None]


def _csv(rows: Sequence[Row]) -> str:
    names = [field.name for field in dataclasses.fields(Row) if field.name not in ("values", "losses")]
    seeds = sorted({seed for row in rows for seed in row.values}, key=lambda seed: (len(seed), seed))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", *names, "losses", *(f"seed_{seed}" for seed in seeds)])
    for rank, row in enumerate(rows, start=1):
        values = [getattr(row, name) for name in names]
        writer.writerow([rank, *values, "+".join(row.losses), *(row.values.get(seed) for seed in seeds)])
    return text.getvalue()


def _markdown(about: Mapping[str, Any], rows: Sequence[Row], said: Sequence[str]) -> str:
    header = table_header(rows)
    lines = [f"# {about.get('name') or 'comparison'}: leaderboard", "", "| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join("---" if i in (0, 5) else "--:" for i in range(len(header))) + "|")
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row_cells(row, table_digits(rows))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in said)]) + "\n"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
