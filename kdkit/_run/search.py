"""``kdkit compare budget=…``: the best loss for a pair, by successive halving within a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdkit._config.context import Context
from kdkit._config.methods import seed_list
from kdkit._config.search import Candidate, Candidates, Rules, find_candidates, search_rules
from kdkit._run.board import base_facts, comparison_folder, make_cell, prepare_teachers, stoppable, worker_count
from kdkit._run.build import Scene
from kdkit._run.cells import Cell, Crew, RunCell, run_cell, run_trial, scene_of
from kdkit._run.folder import first_command, gone_if_refused, run_environment, write_run_files
from kdkit._run.rungs import MARGIN, Plan, first_plan, makespan, next_plan
from kdkit._run.search_end import conclude
from kdkit._run.search_state import State, Timer, span
from kdkit.errors import ConfigError, KdkitError

__all__ = ["Tools", "find_best"]


@dataclass(frozen=True, slots=True)
class Tools:
    """What trains, and what tells the time; the tests have others.

    Attributes:
        clock: seconds, from any start.
        trial: trains and validates.
        final: trains, validates and measures on the test split.
    """

    clock: Callable[[], float] = time.monotonic
    trial: RunCell = run_trial
    final: RunCell = run_cell


def find_best(cfg: DictConfig, context: Context, tools: Tools = Tools()) -> Path:
    """Search losses and their settings on the validation split, measure the best few on the test split.

    Everything counts as spent, the training of a missing teacher too; of an earlier part that was killed, all but the
    trainings that were under way.

    Args:
        cfg: settings of ``kdkit compare`` with a ``budget``.
        context: how it was called.
        tools: what trains, and the clock.

    Returns:
        The folder.

    Raises:
        ConfigError: if the settings make no sense, a split is missing or the budget is too short for any search.
        KdkitError: after the report is written, if a training of the final failed.
    """
    begin = tools.clock()
    rules, seeds, workers = search_rules(cfg), seed_list(cfg), worker_count(cfg)
    found = find_candidates(cfg, context)
    folder = comparison_folder(cfg)
    with gone_if_refused(folder, not cfg.resume), stoppable(folder):
        search = _Search(folder, found, rules, seeds, workers, context, tools)
        search.open(cfg, Timer(rules.budget, tools.clock, begin))
        try:
            with Crew(context, workers) as crew:
                search.run(crew)
        finally:
            search.state.save()
        return conclude(search.state, found, search.scene.task, list(cfg.trust or []))


class _Search:
    """One search; what it knows is in :class:`~kdkit._run.search_state.State`, so that it can go on from a file."""

    state: State
    scene: Scene
    teacher_seconds: float

    def __init__(
        self,
        folder: Path,
        found: Candidates,
        rules: Rules,
        seeds: list[int],
        workers: int,
        context: Context,
        tools: Tools,
    ) -> None:
        self.folder, self.found, self.rules, self.seeds = folder, found, rules, seeds
        self.workers, self.context, self.tools = workers, context, tools
        self.known = {candidate.name: candidate for candidate in found.tried}
        self.seed = max(seeds) + 1
        """Of every training of the search; the final has others."""

    def open(self, cfg: DictConfig, timer: Timer) -> None:
        """Load the data, read what an earlier part has left, provide the teacher."""
        cells = [self._cell(candidate, self.seed, "search", None) for candidate in self._everyone()]
        self.scene = scene_of(cells[0].config())
        _check_splits(cfg, self.scene)
        environment = run_environment(first_command(self.folder) if cfg.resume else self.context.command_line)
        full = full_steps(cells[0].config(), self.scene)
        self.state = State.open(self.folder, self.found, timer, full, self.seed, self.rules)
        self.state.facts = {**base_facts(cells, self.scene, None, environment, self.context), **self.state.facts}
        write_run_files(self.folder, cells[0].config(), environment)
        self.state.save()
        firsts = {candidate.method: cell for candidate, cell in zip(self._everyone(), cells)}
        before = self.state.timer.spent
        teacher = prepare_teachers(list(firsts.values()))
        self.teacher_seconds = self.state.timer.spent - before
        own = {key: self.state.facts[key] for key in ("baseline", "methods", "seeds", "search")}
        self.state.facts = {**base_facts(cells, self.scene, teacher, environment, self.context), **own}
        self.state.save()

    def run(self, crew: Crew) -> None:
        """Trial, rungs, final; whatever an earlier part has done is not done again."""
        self._trial(crew)
        number, alive = 0, self._start()
        while True:
            rung = self.state.rung(number)
            if rung is None:
                if self.state.final is not None:
                    break
                plan = self._plan(alive, number)
                if not plan.rungs:
                    finalists = alive[: plan.finalists]
                    self.state.begin_final(
                        self.found.baseline, [self.known[name] for name in finalists], plan, self.seeds
                    )
                    break
                rung = self.state.begin_rung(alive[: plan.rungs[0].count], plan.rungs[0].steps)
            self._rung(crew, number, rung)
            alive = self._kept(number, rung, alive)
            number += 1
        self._final(crew)
        while self._one_more(alive):
            self._final(crew)

    # ---- stages ----------------------------------------------------------------------------------------------------

    def _trial(self, crew: Crew) -> None:
        """A few steps of every method as it stands: does it run, and how long does a step take?"""
        steps = min(self.rules.trial_steps, self.state.full)
        firsts = {candidate.method: candidate for candidate in reversed(self._everyone()) if not candidate.changes}
        todo = [firsts[method] for method in reversed(firsts) if not self.state.has("trial", firsts[method].name)]
        cells = [self._cell(candidate, self.seed, "search/trial", steps) for candidate in todo]
        counts = Counter(candidate.method for candidate in self.found.tried)
        listed = ", ".join(f"{method} {count}" for method, count in counts.items())
        print(f"{len(self.known)} candidates of {len(counts)} methods: {listed}", flush=True)
        self._train(crew, "trial", cells, lambda cell: 0.0, 0.0)
        baseline = self.found.baseline
        for candidate in firsts.values():
            record = self.state.record("trial", candidate.name)
            if record is None:
                raise ConfigError(
                    f"budget={span(self.rules.budget)} was spent before every method had run {steps} steps "
                    f"({span(self.teacher_seconds)} on the teacher, which is kept); give a longer one"
                )
            if record["status"] != "ok" and candidate is baseline:
                raise KdkitError(f"the baseline {candidate.name} cannot be trained: {record['error']}")
            if record["status"] != "ok" and record.get("kind") != "NonFiniteError":
                self.state.leave_out(candidate.method, str(record["error"]))

    def _start(self) -> list[str]:
        """Names of the candidates that a first rung may take."""
        out = self.state.left_out
        diverged = {name for name in self.known if (self.state.record("trial", name) or {}).get("status") == "failed"}
        alive = [c.name for c in self.found.tried if c.method not in out and c.name not in diverged]
        if not alive:
            raise ConfigError(f"there is nothing to search: {next(iter(out.values()), 'every candidate diverged')}")
        return alive

    def _rung(self, crew: Crew, number: int, rung: dict[str, Any]) -> None:
        if self.state.rung(number + 1) or self.state.final:
            return  # what came after it is known
        todo = [name for name in rung["candidates"] if not self.state.has(number, name)]
        steps = int(rung["steps"])
        cells = [self._cell(self.known[name], self.seed, f"search/rung{number + 1}", steps) for name in todo]
        costs = self.state.costs(self.scene)
        first = self.known[rung["candidates"][0]].method
        smallest = [method for method in (self._first(), first) if method]
        reserve = math.fsum(costs.final(method, self.state.full) for method in smallest) * len(self.seeds)
        method = {cell.method: self.known[cell.method].method for cell in cells}
        self._train(crew, number, cells, lambda cell: costs.trial(method[cell.method], steps), reserve / self.workers)

    def _kept(self, number: int, rung: dict[str, Any], alive: list[str]) -> list[str]:
        """Those that go on, best first; if the time ended before any was trained, all in their old order."""
        names = [str(name) for name in rung["candidates"]]
        if not any(self.state.has(number, name) for name in names):
            return alive
        order = self.state.ranking(number, names, self.scene.task)
        keep = max(math.ceil(len(names) / self.rules.eta), self.rules.finalists)
        if not order:
            error = (self.state.record(number, names[0]) or {}).get("error")
            raise KdkitError(f"every candidate of rung {number + 1} failed, the first with: {error}")
        print(f"rung {number + 1}: kept {min(keep, len(order))} of {len(names)}: {', '.join(order[:keep])}", flush=True)
        return order[:keep]

    def _final(self, crew: Crew) -> None:
        final = self.state.final or {}
        names = [str(name) for name in final.get("candidates", [])]
        candidates = [candidate for name in names for candidate in self._everyone() if candidate.name == name]
        seeds = [int(seed) for seed in final.get("seeds", [])]
        cells = [self._cell(c, seed, "cells", None) for seed in seeds for c in candidates]
        done = self.state.measured()
        todo = [cell for cell in cells if (cell.method, cell.seed) not in done]
        costs = self.state.costs(self.scene)
        method = {candidate.name: candidate.method for candidate in candidates}
        self._train(crew, "final", todo, lambda cell: costs.final(method[cell.method], self.state.full), 0.0)

    def _one_more(self, alive: Sequence[str]) -> bool:
        """Take the next best into a final that is over before the budget is, up to ``search.finalists``."""
        names = (self.state.final or {}).get("candidates", [])
        more = [name for name in alive[: self.rules.finalists] if name not in names]
        if not names or not more or self.state.search["out_of_time"] == "final":
            return False
        candidate, costs = self.known[more[0]], self.state.costs(self.scene)
        seconds = [costs.final(candidate.method, self.state.full)] * len(self.state.final["seeds"])  # type: ignore[index]
        if makespan(seconds, self.workers) > MARGIN * self.state.timer.left:
            return False
        print(f"final: time for {candidate.name} too", flush=True)
        self.state.extend_final(candidate)
        return True

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _everyone(self) -> list[Candidate]:
        return [*([self.found.baseline] if self.found.baseline else []), *self.found.tried]

    def _first(self) -> str | None:
        """The method of the baseline."""
        return self.found.baseline.method if self.found.baseline else None

    def _cell(self, candidate: Candidate, seed: int, place: str, steps: int | None) -> Cell:
        number = self._everyone().index(candidate)
        folder = self.folder / place / f"{number:03d}-{candidate.method}-s{seed}"
        short = steps if steps is not None and steps < self.state.full else None
        cell = make_cell(candidate.name, candidate.config, seed, folder, short)
        if place == "search/trial" and steps is not None:
            cell.settings["engine"]["log_every"] = max(steps // 2, 1)  # two times, to tell a step from the start
        return cell

    def _train(
        self,
        crew: Crew,
        stage: int | str,
        cells: Sequence[Cell],
        expected: Callable[[Cell], float],
        reserve: float,
    ) -> None:
        """Train one after the other as long as each can be expected to end in time, ``reserve`` left over."""
        timer = self.state.timer

        def waiting() -> Iterator[Cell]:
            for cell in cells:
                if timer.left - reserve <= expected(cell):
                    self.state.out_of_time(stage)
                    return
                yield cell

        run = self.tools.final if stage == "final" else self.tools.trial
        for number, record in enumerate(crew.run(waiting(), run), start=1):
            self.state.add(stage, record)
            value = record["metrics" if stage == "final" else "validation"].get(self.scene.task.primary)
            said = (
                f"{self.scene.task.primary} {value:.4g}" if record["status"] == "ok" else f"failed: {record['error']}"
            )
            place = f"rung {stage + 1}" if isinstance(stage, int) else stage
            seed = f", seed {record['seed']}" if stage == "final" else ""
            left = f"{span(max(timer.left, 0))} of {span(timer.seconds)} left"
            print(f"[{place}: {number}/{len(cells)}] {record['method']}{seed}: {said}  ({left})", flush=True)

    def _plan(self, alive: list[str], number: int) -> Plan:
        methods = [self.known[name].method for name in alive]
        baseline = self._first()
        costs, left = self.state.costs(self.scene), self.state.timer.left
        options: dict[str, Any] = {"workers": self.workers, "rules": self.rules, "seeds": len(self.seeds)}
        if number == 0:
            plan, count = first_plan(methods, baseline, self.state.full, costs, left, **options)
            if plan.seconds > MARGIN * left:
                raise _too_short(self.state.timer, plan, baseline)
            self.state.not_tried(alive[count:])
            alive = alive[:count]
        else:
            before = int(self.state.rung(number - 1)["steps"])  # type: ignore[index]
            plan = next_plan(methods, baseline, self.state.full, costs, left, before=before, **options)
        _announce(plan, len(alive), baseline, self.state)
        return plan


def full_steps(cfg: DictConfig, scene: Scene) -> int:
    """Optimizer steps of the training that the settings ask for."""
    engine = cfg.engine
    if engine.max_steps:
        return int(engine.max_steps)
    batches = scene.data.num_batches("train", int(engine.batch_size), train=True)
    return max(batches // int(engine.accumulation), 1) * int(engine.epochs)


def _check_splits(cfg: DictConfig, scene: Scene) -> None:
    setting = "data.val_share=0.05" if "val_share" in cfg.data else "data.val_size=500"
    if scene.data.size("val") == 0:
        raise ConfigError(
            f"budget={cfg.budget} chooses by the validation split and data {scene.data.name!r} has none; hold out some "
            f"of the training data, for example with {setting}"
        )
    if scene.data.size("test") == 0:
        raise ConfigError(
            f"budget={cfg.budget} measures the best few on the test split and data {scene.data.name!r} has none; give "
            f"it one, or hold out training data with {setting}, which leaves the val folder for the test"
        )


def _too_short(timer: Timer, plan: Plan, baseline: str | None) -> ConfigError:
    first = plan.rungs[0] if plan.rungs else None
    search = f"{first.count} candidates for {first.steps} steps each, then " if first else ""
    beside = f" and {baseline}" if baseline else ""
    needed = math.ceil(timer.spent + plan.seconds / MARGIN) + 1
    return ConfigError(
        f"budget={span(timer.seconds)} is too short: the smallest search ({search}the best one{beside} in full with "
        f"{plan.seeds} seeds) takes about {span(plan.seconds)}, and {span(max(timer.left, 0))} are left; give about "
        f"budget={needed}s, name fewer losses=[…], fewer seeds=…, or a shorter training"
    )


def _announce(plan: Plan, count: int, baseline: str | None, state: State) -> None:
    """What comes next, on the terminal."""
    for number, rung in enumerate(plan.rungs, start=len(state.rungs) + 1):
        print(f"rung {number}: {rung.count} candidates, {rung.steps:,} steps each", flush=True)
    if plan.finalists:
        beside = f" and {baseline}" if baseline else ""
        print(
            f"final: {plan.finalists}{beside}, {state.full:,} steps, {plan.seeds} seeds; all of it takes about "
            f"{span(plan.seconds)} of the {span(state.timer.left)} left",
            flush=True,
        )
    else:
        print(f"final: does not fit into the {span(max(state.timer.left, 0))} left", flush=True)
