"""A run folder as the reports see it; everything but ``results.json`` may be missing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdkit._files import read_jsonl
from kdkit.errors import InputError
from kdkit.report._format import Metric, finite, metric, share_digits

__all__ = ["ALONE", "DISTILLED", "TEACHER", "Run", "make_run", "read_json", "read_run"]

TEACHER, ALONE, DISTILLED = "teacher", "student alone", "student distilled"


@dataclass(slots=True)
class Run:
    """What a finished run left.

    Attributes:
        path: the folder.
        results: ``results.json``.
        config: ``config.yaml``, or an empty dict.
        environment: ``environment.json``, else the results' own entry.
        events: ``metrics.jsonl``.
        rows: the networks that were measured, as in the results.
        primary: the metric that decides.
        digits: decimals for per-cent values.
        snippet: Python lines that load the exported student, or an empty string.
    """

    path: Path
    results: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    events: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    primary: Metric
    digits: int
    snippet: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.results.get("name") or self.path.name)

    @property
    def distilled(self) -> bool:
        return self.results.get("kind", "distill") != "train"

    @property
    def main(self) -> dict[str, Any]:
        """The row of the network that the run was for."""
        return self.row(DISTILLED) or (self.rows[-1] if self.rows else {})

    def row(self, name: str) -> dict[str, Any] | None:
        """The row of that name."""
        return next((row for row in self.rows if row.get("name") == name), None)

    def value(self, name: str) -> float | None:
        """Primary test metric of a row."""
        row = self.row(name)
        return finite((row.get("metrics") or {}).get(self.primary.name)) if row else None

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Primary metric on the validation split over steps, per network."""
        return self._curves("eval", lambda event: (event.get("metrics") or {}).get(self.primary.name), "val")

    def loss_curves(self) -> dict[str, list[tuple[float, float]]]:
        """Total loss and loss terms of the network that the run was for, over steps."""
        name = self.main.get("name", DISTILLED)
        events = [event for event in self.events if event.get("event") == "train"]
        own = [event for event in events if self._label(event) == name] or events
        points: dict[str, list[tuple[float, float]]] = {"total": _points(own, lambda event: event.get("loss"))}
        for term in dict.fromkeys(term for event in own for term in event.get("terms") or {}):
            points[term] = _points(own, lambda event, term=term: (event.get("terms") or {}).get(term))
        if len(points) == 2:  # one term: the total says nothing more
            points.pop("total")
        return points

    def _curves(self, kind: str, value: Any, split: str) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for event in self.events:
            if event.get("event") == kind and event.get("split", split) == split:
                found.setdefault(self._label(event), []).append(event)
        order = [str(row.get("name")) for row in self.rows]
        names = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
        return {name: _points(found[name], value) for name in names}

    def _label(self, event: Mapping[str, Any]) -> str:
        name = str(event.get("network", "student"))
        return str(self.main.get("name") or DISTILLED) if name == "student" else name


def read_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: when it is no folder, or ``results.json`` is missing, damaged or without its entries.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"report: a run must be a folder, got {str(path)!r}; pass the folder that kdkit printed")
    if not (path / "results.json").exists():
        way = (
            f"finish it with resume={path}"
            if (path / "config.yaml").exists() or (path / "checkpoints").exists()
            else "pass the folder of a run or of a comparison"
        )
        raise InputError(f"report: a finished run holds results.json, got {str(path)!r} without one; {way}")
    environment = path / "environment.json"
    run = make_run(read_json(path / "results.json"), _read_config(path / "config.yaml"), path)
    if environment.exists():
        run.environment = read_json(environment)
    run.events = read_jsonl(path / "metrics.jsonl")
    run.snippet = run.snippet or _snippet(path)
    return run


def make_run(results: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Run:
    """A run from its results alone.

    Raises:
        InputError: when the results lack ``primary`` or ``rows``.
    """
    rows, primary = results.get("rows"), results.get("primary")
    if not isinstance(primary, str) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"report: results.json must hold 'primary' and 'rows', got {sorted(results)} in {path}; run it again"
        )
    data = dict(results.get("data") or {})
    losses = results.get("losses") or {}
    return Run(
        path=path,
        results={**results, "losses": losses if isinstance(losses, dict) else dict.fromkeys(losses)},
        config=dict(config),
        environment=dict(results.get("environment") or {}),
        events=[],
        rows=rows,
        primary=metric(primary, results.get("higher_is_better")),
        digits=share_digits(data.get("test") or data.get("val")),
        snippet=str(results.get("snippet") or ""),
        data=data,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: when it cannot be read or is no object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"report: {path} must be readable JSON, got {error}; write it again") from error
    if not isinstance(content, dict):
        raise InputError(f"report: {path} must hold a JSON object, got {type(content).__name__}; write it again")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"report: {path} must be readable YAML, got {error}; write it again") from error
    return content if isinstance(content, dict) else {}


def _snippet(path: Path) -> str:
    """How to load the student: the first Python block of its model card."""
    card = path / "student" / "README.md"
    if not card.exists():
        return ""
    block = re.search(r"^```python\n(.*?)^```", card.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return block.group(1).strip() if block else ""


def _points(events: list[dict[str, Any]], value: Any) -> list[tuple[float, float]]:
    """``(step, value)``, one per step: after a resume the last one counts."""
    points = {}
    for event in events:
        step, number = finite(event.get("step")), finite(value(event))
        if step is not None and number is not None:
            points[step] = number
    return sorted(points.items())
