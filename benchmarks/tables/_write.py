"""The pages of a table: HTML, Markdown, LaTeX and CSV, all with the same numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables._cells import Plan
from benchmarks.tables._claims import CLAIM_HEADER, Finding, claim_cells, counts, findings
from benchmarks.tables._facts import read_facts, told, unfinished
from benchmarks.tables._pictures import pictures
from benchmarks.tables._summary import Line, summarise
from kdkit._files import write_atomic
from kdkit.report._format import Metric, metric, p_text, seconds_text
from kdkit.report._page import Picture, render_markdown, write_page

__all__ = ["HEADER", "TEMPLATES", "cells", "columns", "headline", "markdown", "write_all"]

TEMPLATES = Path(__file__).parent / "templates"

HEADER = (
    "row",
    "published",
    "ours, last epoch",
    "ours, best epoch",
    "Δ",
    "verdict",
    "n",
    "95 % interval",
    "gain over student",
    "p (Holm)",
    "ECE",
    "NLL",
    "agreement",
    "time",
)
_KIND = {"row": "row", "verdict": "verdict"}
_OPTIONAL = ("published", "Δ", "verdict", "gain over student", "p (Holm)", "ECE", "NLL", "agreement")
"""Columns that are left out where no row has anything in them, and no verdict but that nothing was compared."""
_KINDS = {"reproduced": "helps", "above": "baseline", "below": "hurts", "failed": "failed"}
_CLAIM_KINDS = {"yes": "helps", "no": "hurts", "not shown": "baseline", "not run": "failed"}
_LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", "Δ": r"$\Delta$", "→": r"$\to$"}
_LATEX |= {"<": r"$<$", "−": "$-$", "–": "--"}


def write_all(
    plan: Plan, records: Sequence[Mapping[str, Any]], teachers: Sequence[Mapping[str, Any]], folder: Path
) -> Path:
    """Write ``table.html``, ``.md``, ``.tex`` and ``.csv``; returns the first."""
    lines = summarise(plan, records, teachers)
    drawn = {
        pair: pictures(pair.replace("/", "--").replace(" ", "-"), rows, metric(plan.table.metric_of(pair)))
        for pair, rows in lines.items()
    }
    content = _content(plan, lines, findings(plan, records), _with_rest(read_facts(folder), records), drawn)
    write_atomic(folder / "table.csv", _csv(lines))
    write_atomic(folder / "table.tex", _latex(plan, lines))
    every = [picture for each in drawn.values() for picture in each]
    return write_page(folder, "table", "table", content, every, TEMPLATES)


def markdown(
    plan: Plan, records: Sequence[Mapping[str, Any]], teachers: Sequence[Mapping[str, Any]], folder: Path
) -> str:
    """The text of ``table.md`` alone, without drawing anything."""
    facts = _with_rest(read_facts(folder), records)
    content = _content(plan, summarise(plan, records, teachers), findings(plan, records), facts, {})
    return render_markdown("table", content, TEMPLATES)


def _with_rest(facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {**facts, "rest": unfinished(facts, records)}


def _content(
    plan: Plan,
    lines: Mapping[str, Sequence[Line]],
    tested: Sequence[Finding],
    facts: Mapping[str, Any],
    drawn: Mapping[str, Sequence[Picture]],
) -> dict[str, Any]:
    table = plan.table
    every = [line for rows in lines.values() for line in rows]
    kept = columns(every)
    of = metric(table.metric)
    blocks = []
    for pair, rows in lines.items():
        title = pair if "/" not in pair else f"{table.pairs[pair].teacher} → {table.pairs[pair].student}"
        own = table.pairs[pair].metric
        title += f" ({metric(own).label})" if own else ""
        entries = [_entry(line, kept) for line in rows]
        blocks.append({"title": title, "lines": entries, "pictures": list(drawn.get(pair, ()))})
    return {
        "title": table.title,
        "kicker": "Published and measured" if any(line.published is not None for line in every) else "Measured",
        "facts": [
            table.source,
            f"{len(lines)} pair{'s' if len(lines) != 1 else ''}",
            of.label + (", %" if of.share else ""),
        ],
        "question": table.question,
        "headline": headline(every, of),
        "notes": [*([facts["rest"]] if facts["rest"] else []), *_notes(plan), *table.notes],
        "header": [{"text": HEADER[place], "kind": _KIND.get(HEADER[place], "")} for place in kept],
        "blocks": blocks,
        "claims": [claim_cells(each) for each in tested],
        "claim_header": CLAIM_HEADER,
        "claim_kinds": _CLAIM_KINDS,
        "claim_counts": counts(tested),
        "protocol": _protocol(plan),
        "command": "\n".join(dict.fromkeys(str(each["command"]) for each in facts.get("sessions", []))),
        "environment": told(facts),
    }


def headline(lines: Sequence[Line], of: Metric) -> str:
    """The finding in one sentence."""
    compared = [line for line in lines if line.method != "teacher" and line.verdict in ("reproduced", "above", "below")]
    rest = sum(line.verdict == "not run" for line in lines if line.method != "teacher")
    tail = f" {rest} rows have not been run." if rest else ""
    if not compared:
        return _best(lines, of) + tail
    counts = {kind: sum(line.verdict == kind for line in compared) for kind in ("reproduced", "above", "below")}
    return (
        f"Of {len(compared)} published values {counts['reproduced']} were reproduced; ours were above "
        f"{counts['above']} and below {counts['below']}." + tail
    )


def _best(lines: Sequence[Line], of: Metric) -> str:
    """Where there is nothing to hold the values against."""
    measured = [line for line in lines if line.mean is not None and line.method != "teacher"]
    if not measured:
        return "Nothing has been measured yet."
    pairs = len({line.pair for line in measured})
    told = (
        f"{len(measured)} rows of {pairs} pair{'s' if pairs > 1 else ''} were measured, none against a published value"
    )
    choose = min if of.higher_is_better is False else max
    best = choose(measured, key=lambda line: line.mean or 0.0)
    where = f" for {best.pair.replace('/', ' → ')}" if pairs > 1 else ""
    gain = f", {_signed(best.gain)} against the student alone" if best.gain is not None else ""
    return f"{told}; the best is {best.title} with {_spread(best.mean, best.std)}{gain}{where}."


def _notes(plan: Plan) -> list[str]:
    table = plan.table
    if not any(method.published for method in table.methods.values()):
        return ["Methods are tested against the student alone, paired by seed, with Holm's correction."]
    reported = {"last": "after the last epoch", "best": "after the epoch that was best on the test split"}
    how = reported.get(table.epoch, "after an epoch that the source does not name; ours of the last one is compared")
    notes = [f"The source reports values {how}" + (f", means of {table.runs} runs." if table.runs else ".")]
    if table.error:
        notes.append("The source reports error rates; here they are 100 minus that.")
    notes.append(
        "A value counts as reproduced where the difference is within the noise of both means, judged by our spread "
        "over the seeds; p-values test a method against the student alone, paired by seed, corrected by Holm's method."
    )
    return notes


def _protocol(plan: Plan) -> list[tuple[str, str]]:
    table = plan.table
    return [
        ("source", table.source),
        *([("values read in", table.seen_in)] if table.seen_in else []),
        ("settings of every cell", " ".join(table.settings) or "kdkit's defaults"),
        ("same for all methods", "seeds, order of the samples, augmentation, student's first weights"),
    ]


# ---- cells ---------------------------------------------------------------------------------------------------------


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}".replace("-", "−")


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def cells(line: Line) -> list[str]:
    """The texts of a row, as in :data:`HEADER`."""
    interval = "" if line.low is None or line.high is None else f"{line.low:.2f} to {line.high:.2f}".replace("-", "−")
    return [
        line.title,
        _spread(line.published, line.published_spread),
        _spread(line.mean, line.std),
        _spread(line.best_mean, line.best_std),
        _signed(line.difference),
        line.verdict,
        str(len(line.values)) if line.values else "",
        interval,
        _signed(line.gain),
        "" if line.p is None else p_text(line.p),
        _number(line.ece, 2, 100.0),
        _number(line.nll, 3),
        _number(line.agreement, 1, 100.0),
        "" if line.seconds is None else seconds_text(line.seconds),
    ]


def _keys(line: Line) -> list[Any]:
    return [
        line.title,
        line.published,
        line.mean,
        line.best_mean,
        line.difference,
        line.verdict,
        len(line.values),
        line.low,
        line.gain,
        line.p,
        line.ece,
        line.nll,
        line.agreement,
        line.seconds,
    ]


def columns(lines: Sequence[Line]) -> list[int]:
    """Which columns say something."""
    told = [cells(line) for line in lines]
    nothing = {"", "not compared", "not run", "missing"}
    return [
        place
        for place, name in enumerate(HEADER)
        if name not in _OPTIONAL or any(row[place] not in nothing for row in told)
    ]


def _entry(line: Line, kept: Sequence[int]) -> dict[str, Any]:
    told, keys = cells(line), _keys(line)
    texts = [
        {"text": told[place], "key": "" if keys[place] is None else keys[place], "kind": _KIND.get(HEADER[place], "")}
        for place in kept
    ]
    kind = _KINDS.get(line.verdict, "")
    silent = line.verdict == "not run" and HEADER.index("verdict") not in kept
    note = line.note or ("not run" if silent else "")
    return {"title": line.title, "cells": texts, "note": note, "kind": kind, "alone": line.method == "student"}


def _csv(lines: Mapping[str, Sequence[Line]]) -> str:
    into = io.StringIO()
    writer = csv.writer(into, lineterminator="\n")
    names = [
        "pair",
        "method",
        "title",
        "published",
        "mean",
        "std",
        "best_mean",
        "best_std",
        "difference",
        "low",
        "high",
    ]
    names += ["gain", "p", "ece", "nll", "agreement", "seconds", "verdict", "note"]
    writer.writerow([*names, "n"])
    for rows in lines.values():
        for line in rows:
            writer.writerow(
                [*("" if (value := getattr(line, name)) is None else value for name in names), len(line.values)]
            )
    return into.getvalue()


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex(plan: Plan, lines: Mapping[str, Sequence[Line]]) -> str:
    """One column per pair, published value and ours below each other, as papers print it."""
    titles = {
        line.method: line.title for rows in lines.values() for line in rows if line.method not in ("teacher", "student")
    }
    order = {"teacher": "Teacher", "student": "Student", **titles}
    by = {(pair, line.method): line for pair, rows in lines.items() for line in rows}
    heads = " & ".join(
        _escaped(f"{plan.table.pairs[pair].teacher} → {plan.table.pairs[pair].student}") for pair in lines
    )
    body = [rf"\begin{{tabular}}{{ll{'r' * len(lines)}}}", r"\toprule", rf" & & {heads} \\", r"\midrule"]
    for method, title in order.items():
        rows = [by.get((pair, method)) for pair in lines]
        published = " & ".join(
            _escaped(_spread(line.published, line.published_spread)) if line else "" for line in rows
        )
        ours = " & ".join(_escaped(_spread(line.mean, line.std)) if line else "" for line in rows)
        body += [rf"{_escaped(title)} & published & {published} \\", rf" & ours & {ours} \\"]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"]) + "\n"
