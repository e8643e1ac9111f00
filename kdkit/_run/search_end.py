"""The end of a search: who won, the recipe of it, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdkit._config.search import Candidates
from kdkit._files import read_jsonl
from kdkit._run.rungs import ranked
from kdkit._run.search_state import State
from kdkit._run.winner import winner_command, write_winner
from kdkit.errors import KdkitError
from kdkit.report.search_report import validation_means
from kdkit.tasks._base import Task

__all__ = ["conclude"]


def conclude(state: State, found: Candidates, task: Task, trust: list[str]) -> Path:
    """Name the winner, write its recipe and the report, print the leaderboard.

    Args:
        state: of the search, over or out of time.
        found: the candidates.
        task: whose primary metric decides.
        trust: packages that the winner's command has to name.

    Returns:
        The folder.

    Raises:
        KdkitError: after everything is written, if a training of the final failed.
    """
    from kdkit.report import print_comparison, write_compare_report

    folder = state.folder
    results = read_jsonl(folder / "results.jsonl")
    winner = _of_final(state, results, task) or _of_rungs(state, task)
    if winner is not None:
        everyone = [*([found.baseline] if found.baseline else []), *found.tried]
        candidate = next(candidate for candidate in everyone if candidate.name == winner["name"])
        seeds = state.facts["seeds"]
        winner["command"] = winner_command(folder, seeds[0] if seeds else None, trust)
        write_winner(folder, candidate.config, f"The winner of a search: {candidate.name}.")
    state.search["winner"] = winner
    state.save()
    report = write_compare_report(folder)
    print_comparison(folder)
    if winner is not None:
        print(f"winner: {winner['name']}\nagain:  {winner['command']}")
    print(f"report: {report}", flush=True)
    failed = {(line["method"], line["seed"]) for line in results if line["status"] != "ok"} - state.measured()
    if failed:
        raise KdkitError(
            f"{len(failed)} trainings of the final failed (the leaderboard shows them; tracebacks are in "
            f"{folder}/cells); try them again with resume={folder}"
        )
    return folder


def _of_final(state: State, results: list[dict[str, Any]], task: Task) -> dict[str, Any] | None:
    """The best mean over the seeds on the validation split; the baseline may win too. Nobody wins before all ran."""
    names = (state.final or {}).get("candidates", [])
    if set(names) - {str(line["method"]) for line in results}:
        return None
    means = validation_means(results, task.primary, names)
    order = ranked([(means[name][0] if name in means else None, None) for name in names], task.higher_is_better)
    if not means:
        return None
    name = names[order[0]]
    return {"name": name, "stage": "final", "value": means[name][0], "n": means[name][1], "steps": state.full}


def _of_rungs(state: State, task: Task) -> dict[str, Any] | None:
    """Without a final that all have begun: the best of the last rung in which anybody was trained."""
    for number in range(len(state.rungs) - 1, -1, -1):
        rung = state.rungs[number]
        order = state.ranking(number, rung["candidates"], task)
        if order:
            record = state.record(number, order[0]) or {}
            value = record["validation"][task.primary]
            return {"name": order[0], "stage": f"rung {number + 1}", "value": value, "n": 1, "steps": rung["steps"]}
    return None
