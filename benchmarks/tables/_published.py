"""Results that are kept in the repository, and the page of the documentation that is made of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables._cells import Plan, outline
from benchmarks.tables._claims import CLAIM_HEADER, claim_cells, counts, findings
from benchmarks.tables._facts import read_facts, told, unfinished
from benchmarks.tables._summary import summarise
from benchmarks.tables._table import Table, load
from benchmarks.tables._write import HEADER, TEMPLATES, cells, columns, headline
from kdkit._files import read_jsonl
from kdkit.report._format import metric
from kdkit.report._page import render_markdown

__all__ = ["PAGE", "PUBLISHED", "publish_results", "published", "read_results", "results_page", "whole"]

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
_KEPT = ("results.jsonl", "teachers.jsonl", "table.json", "table.md", "table.csv")
_LEFT_OUT = ("ours, best epoch", "95 % interval", "time", "verdict")

_Records = list[dict[str, Any]]


def read_results(folder: Path) -> tuple[_Records, _Records]:
    """Records of cells and of teachers."""
    teachers = folder / "teachers.jsonl"
    return read_jsonl(folder / "results.jsonl"), read_jsonl(teachers) if teachers.is_file() else []


def publish_results(plan: Plan, folder: Path) -> Path:
    """Copy a table's results into the repository, without pictures, pages that hold them, and runs."""
    target = PUBLISHED / plan.table.name
    target.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return target


def published() -> list[str]:
    """Tables with results in the repository."""
    return sorted(path.parent.name for path in PUBLISHED.glob("*/results.jsonl"))


def whole(table: Table) -> Plan:
    """All rows of a table."""
    return outline(table, list(table.pairs), list(table.methods))


def results_page() -> str:
    """The text of ``docs/results.md``."""
    entries = [_entry(load(name), PUBLISHED / name) for name in published()]
    return render_markdown("results", {"entries": entries, "claim_header": CLAIM_HEADER}, TEMPLATES)


def _entry(table: Table, folder: Path) -> dict[str, Any]:
    plan = whole(table)
    records, teachers = read_results(folder)
    lines = summarise(plan, records, teachers)
    every = [line for rows in lines.values() for line in rows]
    kept = [place for place in columns(every) if HEADER[place] not in _LEFT_OUT]
    tested, of = findings(plan, records), metric(table.metric)
    facts = read_facts(folder)
    shown = {"teacher", "student", *(table.main or table.methods)}
    return {
        "name": table.name,
        "title": table.title,
        "question": table.question,
        "headline": headline(every, of),
        "rest": unfinished(facts, records),
        "notes": table.notes,
        "metric": of.label + (", %" if of.share else ""),
        "header": [HEADER[place] for place in kept],
        "blocks": [
            {
                "title": pair.replace("/", " → "),
                "lines": [
                    [cells(line)[place] for place in kept] for line in rows if line.method in shown and line.values
                ],
            }
            for pair, rows in lines.items()
        ],
        "left_out": [
            f"{line.title} ({pair.replace('/', ' → ')}): {line.note or line.verdict}"
            for pair, rows in lines.items()
            for line in rows
            if line.method in shown and not line.values
        ],
        "claims": [claim_cells(each) for each in tested],
        "counts": counts(tested),
        "commands": _commands(facts),
        "environment": told(facts),
    }


def _commands(facts: Mapping[str, Any]) -> Sequence[str]:
    return list(dict.fromkeys(str(each["command"]) for each in facts.get("sessions", [])))
