"""The card that goes with an exported student: what it is, how it was made, how good it is, where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.report._format import bytes_text, count_text, finite, metric, value_text
from kdkit.report._run import ALONE, TEACHER, Run, make_run
from kdkit.report._words import caveats, outcome, story
from kdkit.report.run_report import metric_label, metric_names

__all__ = ["model_card"]

_PIPELINES = {
    "classification": "image-classification",
    "causal_lm": "text-generation",
    "sequence_classification": "text-classification",
    "embedding": "sentence-similarity",
}


def model_card(
    results: Mapping[str, Any], config: Mapping[str, Any], snippet: str, *, library: str | None = None
) -> str:
    """Markdown with the YAML header that model hubs read.

    The licence is ``unknown`` on purpose: it depends on the data and the teacher, so whoever publishes the student
    chooses it.

    Args:
        results: what ``results.json`` holds.
        config: the resolved settings.
        snippet: Python lines that load the student.
        library: ``library_name`` of the header; by default the library that the snippet imports, else ``pytorch``.

    Raises:
        InputError: when the results lack ``primary`` or ``rows``.
    """
    run = make_run(results, config, Path())
    library = library or next((name for name in ("transformers", "timm") if name in snippet), "pytorch")
    parts = [
        f"---\n{_header(run, library)}---",
        f"# {run.name}: {run.main.get('network') or 'student'}",
        _what(run),
        "## How to use it",
        f"```python\n{snippet.strip()}\n```",
        "## How good it is",
        _table(run),
        " ".join(outcome(run)),
        "## How it was trained",
        " ".join(story(run)),
        _training(run),
        "## Limits",
        _limits(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(run: Run, library: str) -> str:
    import yaml

    task = str(run.results.get("task"))
    header: dict[str, Any] = {"license": "unknown", "library_name": library}
    if task in _PIPELINES:
        header["pipeline_tag"] = _PIPELINES[task]
    header["tags"] = ["knowledge-distillation", "kdkit"] if run.distilled else ["kdkit"]
    metrics = [
        {"type": name, "name": metric_label(run, metric(name)), "value": round(value, 6)}
        for name in metric_names(run)
        if (value := finite((run.main.get("metrics") or {}).get(name))) is not None
    ]
    if metrics and task in _PIPELINES and run.data.get("name"):
        name = str(run.data["name"])
        entry = {"task": {"type": _PIPELINES[task]}, "dataset": {"name": name, "type": name}, "metrics": metrics}
        header["model-index"] = [{"name": run.name, "results": [entry]}]
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _what(run: Run) -> str:
    task = str(run.results.get("task") or "its task").replace("_", " ").replace("causal lm", "language modelling")
    network, parameters = run.main.get("network") or "network", finite(run.main.get("parameters"))
    size = f" with {count_text(parameters)} parameters" if parameters else ""
    size += f" ({bytes_text(run.main['file_bytes'])} on disk)" if finite(run.main.get("file_bytes")) else ""
    teacher = run.row(TEACHER)
    if not run.distilled:
        return f"A {network}{size} for {task}, trained with kdkit."
    source = f" from a {teacher['network']} teacher" if teacher and teacher.get("network") else ""
    return f"A {network}{size} for {task}, distilled with kdkit{source}."


def _table(run: Run) -> str:
    names = metric_names(run)
    lines = [
        f"| {'test' if run.data.get('test') else 'held-out'} metric | "
        + " | ".join(str(row.get("name")) for row in run.rows)
        + " |",
        "|---|" + "--:|" * len(run.rows),
    ]
    for name in names:
        of = run.primary if name == run.primary.name else metric(name)
        cells = [value_text(of, (row.get("metrics") or {}).get(name), run.digits) for row in run.rows]
        lines.append(f"| {metric_label(run, of)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _training(run: Run) -> str:
    lines = []
    teacher = run.row(TEACHER)
    if teacher and teacher.get("origin"):
        lines.append(f"- teacher: {teacher['origin']}")
    if run.results.get("losses"):
        lines.append("- losses: " + ", ".join(f"`{name}`" for name in run.results["losses"]))
    if run.data.get("name"):
        fingerprint = f", fingerprint `{run.data['fingerprint']}`" if run.data.get("fingerprint") else ""
        lines.append(f"- data: {run.data['name']}{fingerprint}")
    if run.results.get("seed") is not None:
        lines.append(f"- seed: {run.results['seed']}")
    if run.results.get("kdkit"):
        lines.append(f"- kdkit {run.results['kdkit']}")
    if run.results.get("command"):
        lines.append(f"- command: `{run.results['command']}`")
    return "\n".join(lines)


def _limits(run: Run) -> str:
    name = run.data.get("name") or "its data"
    lines = [
        f"- Measured on the held-out part of {name} only; nothing is known about other data.",
        "- No licence has been chosen: check the terms of the data and of the teacher before passing it on.",
    ]
    if run.distilled:
        lines.insert(1, "- A distilled student takes over its teacher's mistakes and biases.")
    said = caveats(run) if run.row(ALONE) else []
    return "\n".join([*lines, *(f"- {sentence}" for sentence in said)])
