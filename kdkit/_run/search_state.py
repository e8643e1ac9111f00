"""What a search knows, in memory and in its folder: candidates, rungs, records, time spent."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdkit._config.search import Candidate, Candidates, Rules
from kdkit._files import append_jsonl, read_jsonl, sha256_json, write_json
from kdkit._run.board import defining, without_own
from kdkit._run.build import Scene
from kdkit._run.rungs import Costs, Plan, ranked
from kdkit.errors import ConfigError
from kdkit.report._format import finite
from kdkit.tasks._base import Task

__all__ = ["State", "Timer", "span"]

Record = dict[str, Any]


class Timer:
    """Time spent and left, earlier parts of a search included.

    Args:
        seconds: the budget.
        clock: tells the time.
        begin: when this part began, by that clock.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], begin: float) -> None:
        self.seconds, self.clock, self.begin = seconds, clock, begin
        self.before = 0.0

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self.before + self.clock() - self.begin

    @property
    def left(self) -> float:
        """Seconds until the budget is spent; negative afterwards."""
        return self.seconds - self.spent


@dataclass(slots=True)
class State:
    """A search as ``compare.json``, ``search.jsonl`` and ``results.jsonl`` hold it.

    Attributes:
        folder: where these are.
        timer: of the budget.
        full: optimizer steps of the full training.
        facts: the content of ``compare.json``.
        records: of the search, by stage (``"trial"``, or the number of a rung from 0 on) and name.
        methods: name of a candidate -> its method.
    """

    folder: Path
    timer: Timer
    full: int
    facts: dict[str, Any]
    records: dict[tuple[int | str, str], Record] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, found: Candidates, timer: Timer, full: int, seed: int, rules: Rules) -> State:
        """A new search, or the one that the folder holds.

        Raises:
            ConfigError: if the folder holds a search among other candidates.
        """
        everyone = [*([found.baseline] if found.baseline else []), *found.tried]
        candidates = {candidate.name: _facts_of(candidate) for candidate in everyone}
        search: dict[str, Any] = {
            "budget": rules.budget,
            "spent": 0.0,
            "alone": found.baseline.name if found.baseline else None,
            "eta": rules.eta,
            "seed": seed,
            "full_steps": full,
            "candidates": candidates,
            "left_out": dict(found.left_out),
            "not_tried": [],
            "rungs": [],
            "final": None,
            "out_of_time": None,
            "winner": None,
        }
        baseline = found.baseline.name if found.baseline else found.tried[0].name
        facts = {"baseline": baseline, "methods": {}, "seeds": [], "search": search}
        path = folder / "compare.json"
        if path.is_file():
            stored = json.loads(path.read_text())
            _compare(folder, stored.get("search"), search)
            kept = stored["search"]
            kept |= {"budget": rules.budget, "out_of_time": None}
            facts = {**{key: stored.get(key, facts[key]) for key in facts}, "search": kept}
            timer.before = float(kept["spent"])
        state = cls(folder, timer, full, facts)
        state.methods = {candidate.name: candidate.method for candidate in everyone}
        for record in read_jsonl(folder / "search.jsonl"):
            state.records[record["stage"], record["method"]] = record
        return state

    def save(self) -> None:
        """``compare.json``, with the time spent."""
        self.search["spent"] = self.timer.spent
        write_json(self.folder / "compare.json", self.facts)

    @property
    def search(self) -> dict[str, Any]:
        """The part of the facts that is about the search."""
        return self.facts["search"]

    @property
    def rungs(self) -> list[dict[str, Any]]:
        """Rungs that have begun: their ``steps`` and names of ``candidates``."""
        return self.search["rungs"]

    @property
    def final(self) -> dict[str, Any] | None:
        """Names of ``candidates`` and ``seeds`` of the final, once it is known."""
        return self.search["final"]

    @property
    def left_out(self) -> dict[str, str]:
        """Method -> why it is no part of the search."""
        return self.search["left_out"]

    def rung(self, number: int) -> dict[str, Any] | None:
        """A rung that has begun."""
        return self.rungs[number] if number < len(self.rungs) else None

    def has(self, stage: int | str, name: str) -> bool:
        """Whether this training is over."""
        return (stage, name) in self.records

    def record(self, stage: int | str, name: str) -> Record | None:
        """The record of a training that is over."""
        return self.records.get((stage, name))

    def add(self, stage: int | str, record: Record) -> None:
        """Write down a training that is over."""
        if stage == "final":
            append_jsonl(self.folder / "results.jsonl", record)
        else:
            record = {"stage": stage, **record}
            self.records[stage, record["method"]] = record
            append_jsonl(self.folder / "search.jsonl", record)
        self.save()

    def measured(self) -> set[tuple[str, int]]:
        """Name and seed of the trainings of the final that are done."""
        lines = read_jsonl(self.folder / "results.jsonl")
        return {(str(line["method"]), int(line["seed"])) for line in lines if line["status"] == "ok"}

    def leave_out(self, method: str, reason: str) -> None:
        """A method turned out not to run."""
        self.left_out[method] = reason
        self.save()
        print(f"left out: {method} ({reason})", flush=True)

    def not_tried(self, names: Sequence[str]) -> None:
        """Candidates that there is no time for."""
        self.search["not_tried"] = list(names)

    def out_of_time(self, stage: int | str) -> None:
        """The budget ended here."""
        self.search["out_of_time"] = stage

    def begin_rung(self, names: Sequence[str], steps: int) -> dict[str, Any]:
        """Fix who is in the next rung."""
        self.rungs.append({"steps": steps, "candidates": list(names)})
        self.save()
        return self.rungs[-1]

    def begin_final(
        self, baseline: Candidate | None, finalists: Sequence[Candidate], plan: Plan, seeds: Sequence[int]
    ) -> None:
        """Fix who is in the final; nothing is fixed if there is no time for one."""
        if not finalists:
            self.out_of_time("final")
            return
        chosen = [*([baseline] if baseline else []), *finalists]
        names = [candidate.name for candidate in chosen]
        self.search["final"] = {"candidates": names, "seeds": list(seeds[: plan.seeds])}
        self.facts["methods"] = {candidate.name: list(map(str, candidate.config.loss)) for candidate in chosen}
        self.facts["seeds"] = list(seeds[: plan.seeds])
        self.facts["baseline"] = names[0]
        self.save()

    def extend_final(self, candidate: Candidate) -> None:
        """One more candidate, for whom there is time after all."""
        self.search["final"]["candidates"].append(candidate.name)
        self.facts["methods"][candidate.name] = list(map(str, candidate.config.loss))
        self.save()

    def ranking(self, stage: int, names: Sequence[str], task: Task) -> list[str]:
        """Names with a finite validation value, best first; equal ones by their validation loss."""
        scores = []
        for name in names:
            validation = (self.record(stage, name) or {}).get("validation") or {}
            scores.append((finite(validation.get(task.primary)), finite(validation.get("nll"))))
        return [names[place] for place in ranked(scores, task.higher_is_better) if scores[place][0] is not None]

    def costs(self, scene: Scene) -> Costs:
        """Times of a step and of what surrounds the steps, from all trainings so far; the longest count."""
        longest: dict[str, list[Record]] = {}
        for record in self.records.values():
            if record["status"] != "ok":
                continue
            kept = longest.setdefault(self.methods[record["method"]], [])
            if not kept or record["steps"] > kept[0]["steps"]:
                kept[:] = [record]
            elif record["steps"] == kept[0]["steps"]:
                kept.append(record)
        per_step = {
            method: math.fsum(record["step_seconds"] for record in kept) / len(kept) for method, kept in longest.items()
        }
        slowest = max(per_step.values(), default=0.0)
        per_step |= {method: slowest for method in self.methods.values() if method not in per_step}
        done = [record for record in self.records.values() if record["status"] == "ok"]
        finals = [line for line in read_jsonl(self.folder / "results.jsonl") if line["status"] == "ok"]
        overhead = _overhead(done)
        share = scene.data.size("test") / max(scene.data.size("val"), 1)
        test = share * statistics.median(record["validating"] for record in done) if done else 0.0
        return Costs(per_step, overhead, _overhead(finals) if finals else overhead + test)


def _overhead(records: Sequence[Record]) -> float:
    """Seconds of a training besides its steps."""
    beside = [max(record["wall"] - record["step_seconds"] * record["steps"], 0.0) for record in records]
    return statistics.median(beside) if beside else 0.0


def _facts_of(candidate: Candidate) -> dict[str, Any]:
    settings: Any = make_plain(candidate)
    return {
        "method": candidate.method,
        "losses": list(map(str, candidate.config.loss)),
        "changes": candidate.changes,
        "digest": sha256_json(defining(settings)),
    }


def make_plain(candidate: Candidate) -> dict[str, Any]:
    """The settings of a candidate as plain containers."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(without_own(candidate.config), resolve=False)  # type: ignore[return-value]


def _compare(folder: Path, stored: dict[str, Any] | None, now: dict[str, Any]) -> None:
    if stored is None:
        raise ConfigError(f"resume={folder} is a comparison without a budget; go on with it without budget=…")
    digests = [{name: facts["digest"] for name, facts in each["candidates"].items()} for each in (stored, now)]
    keys = ("eta", "seed", "full_steps")
    if digests[0] != digests[1] or any(stored[key] != now[key] for key in keys):
        raise ConfigError(
            f"resume={folder} searches among other candidates or settings; leave everything but resume=… and budget=… "
            "out, or start a new search"
        )


def span(seconds: float) -> str:
    """A time as people and ``budget=`` write it: ``45s``, ``12m30s``, ``2h05m``."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes}m{rest:02d}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"
