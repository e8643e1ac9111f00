"""How a search found its winner: rungs, candidates and what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdkit.report._format import Metric, finite, metric, seconds_text, value_text
from kdkit.report.statistics import mean_std

__all__ = ["search_section", "search_sentences", "validation_means"]

Record = Mapping[str, Any]


def validation_means(results: Sequence[Record], primary: str, names: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Mean validation value of each method over the seeds that all of ``names`` have, and how many these are.

    Methods with a training that failed, or without one that is over, are left out.
    """
    values: dict[str, dict[int, float | None]] = {}
    for cell in results:
        value = finite((cell.get("validation") or {}).get(primary)) if cell.get("status", "ok") == "ok" else None
        values.setdefault(str(cell["method"]), {})[int(cell["seed"])] = value
    found = {name: values[name] for name in names if values.get(name) and None not in values[name].values()}
    shared = set.intersection(*(set(by_seed) for by_seed in found.values())) if found else set()
    means = {}
    for name, by_seed in found.items():
        used = [float(by_seed[seed] or 0.0) for seed in sorted(shared)]
        if used:
            means[name] = mean_std(used)[0] or 0.0, len(used)
    return means


def search_sentences(about: Record, results: Sequence[Record]) -> list[str]:
    """What a search has come to so far; nothing for a comparison without a budget."""
    search = about.get("search")
    if search is None:
        return []
    return [*_winner_sentences(about, search), *_progress(search, results), *_time(search)]


def _winner_sentences(about: Record, search: Record) -> list[str]:
    winner = search.get("winner")
    if winner is None:
        return []
    of = metric(str(about["primary"]), bool(about["higher_is_better"]))
    value = value_text(of, winner["value"], 2)
    if winner["stage"] != "final":
        return [
            f"The winner so far is {winner['name']}, by its validation {of.label} of {value} after "
            f"{winner['steps']:,} of {search['full_steps']:,} steps in {winner['stage']}; there was no time to "
            "compare it with the others in the final."
        ]
    seeds = f"the mean of {winner['n']} seeds" if winner["n"] > 1 else "one seed"
    said = [
        f"The winner is {winner['name']}, by its validation {of.label} of {value} ({seeds}) in the final; the test "
        "split had no part in any choice."
    ]
    if winner["name"] == search["alone"]:
        said.append("No candidate was better than the baseline on the validation split.")
    return said


def _progress(search: Record, results: Sequence[Record]) -> list[str]:
    final = search.get("final")
    if final is None:
        return ["The final has not begun."]
    planned = {(name, seed) for name in final["candidates"] for seed in final["seeds"]}
    missing = len(planned - {(str(cell["method"]), int(cell["seed"])) for cell in results})
    return [f"{missing} of {len(planned)} trainings of the final have not run."] if missing else []


def _time(search: Record) -> list[str]:
    said = []
    if search.get("out_of_time") is not None:
        stage = _stage_name(search["out_of_time"])
        said.append(
            f"The budget did not suffice for all of {stage}; resume=FOLDER with a longer budget=… goes on from here."
        )
    if search.get("not_tried"):
        said.append(f"{len(search['not_tried'])} candidates were not tried, because the budget was too short for them.")
    said.append(f"{seconds_text(search['spent'])} of a budget of {seconds_text(search['budget'])} were spent.")
    return said


def _stage_name(stage: int | str) -> str:
    return f"rung {stage + 1}" if isinstance(stage, int) else f"the {stage}"


def search_section(about: Record, records: Sequence[Record], results: Sequence[Record]) -> dict[str, Any] | None:
    """The table of the candidates and what belongs to it, as the templates want it.

    Args:
        about: ``compare.json``.
        records: ``search.jsonl``, one line per training of the search.
        results: ``results.jsonl``, the trainings of the final.

    Returns:
        ``None`` for a comparison without a budget.
    """
    search = about.get("search")
    if search is None:
        return None
    of = metric(str(about["primary"]), bool(about["higher_is_better"]))
    by_stage = {(record["stage"], str(record["method"])): record for record in records}
    names = (search.get("final") or {}).get("candidates", [])
    means = validation_means(results, of.name, names)
    rungs = search["rungs"]
    header = ["candidate", *(f"rung {n}: {rung['steps']:,} steps" for n, rung in enumerate(rungs, start=1))]
    if names:
        header.append(f"final: {search['full_steps']:,} steps")
    lines = []
    for name in search["candidates"]:
        if name in search["not_tried"]:
            continue
        values = [_value(of, by_stage.get((number, name))) for number in range(len(rungs))]
        if names:
            values.append(value_text(of, means[name][0], 2) if name in means else "–")
        reached = _reached(name, search)
        outcome = _outcome(name, reached, search, by_stage)
        last = means[name][0] if name in means else _number(of, by_stage.get((reached, name)))
        key = (-reached, last is None, -(last or 0.0) if of.higher_is_better else (last or 0.0))
        lines.append((key, [name, *values, outcome]))
    return {
        "header": [*header, "outcome"],
        "lines": [cells for _, cells in sorted(lines, key=lambda line: line[0])],
        "left_out": list(search["left_out"].items()),
        "not_tried": ", ".join(search["not_tried"]),
        "label": of.label,
        "seed": search["seed"],
        "command": (search.get("winner") or {}).get("command", ""),
    }


def _number(of: Metric, record: Record | None) -> float | None:
    return finite(((record or {}).get("validation") or {}).get(of.name))


def _value(of: Metric, record: Record | None) -> str:
    if record is not None and record["status"] != "ok":
        return "failed"
    return value_text(of, _number(of, record), 2)


def _reached(name: str, search: Record) -> int:
    """Number of the last rung that a candidate was in, -1 for none; one more for the final."""
    if name in (search.get("final") or {}).get("candidates", []):
        return len(search["rungs"])
    return max((number for number, rung in enumerate(search["rungs"]) if name in rung["candidates"]), default=-1)


def _outcome(name: str, reached: int, search: Record, by_stage: Mapping[tuple[Any, str], Record]) -> str:
    if name == (search.get("winner") or {}).get("name"):
        return "winner"
    if reached == len(search["rungs"]) and search.get("final"):
        return "final"
    method = search["candidates"][name]["method"]
    if method in search["left_out"]:
        return "left out"
    record = by_stage.get((reached if reached >= 0 else "trial", name))
    if record is not None and record["status"] != "ok":
        return f"failed: {record['error']}"
    if reached < 0:
        return "only in the final" if search["final"] is None else "not tried"
    if record is None:
        return f"in rung {reached + 1}" if reached == len(search["rungs"]) - 1 else "not trained in time"
    last = reached == len(search["rungs"]) - 1 and search.get("final") is None
    return f"in rung {reached + 1}" if last else f"dropped after rung {reached + 1}"
