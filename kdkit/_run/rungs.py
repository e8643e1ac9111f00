"""The plan of a search by successive halving: how many candidates, for how many steps, within a time.

Everything here is arithmetic on measured times; nothing is trained.

Source: K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
AISTATS 2016. Deviations: a rung trains from scratch with a whole schedule of its own length instead of going on from
the rung before, since a learning rate that is cut off half-way says little about where it would have ended; the last
stage trains the best few in full with several new seeds; and the lengths follow from the time that is left.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdkit._config.search import Rules

__all__ = ["MARGIN", "Costs", "Plan", "Rung", "first_plan", "makespan", "next_plan", "ranked"]

MARGIN = 0.9
"""Share of the time left that is planned with; the rest is for trainings that turn out slower."""

_LONGER = 1.5
"""A rung that is not longer than the one before by this factor tells nothing new."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a training, as a straight line in its steps.

    Attributes:
        per_step: method -> seconds of an optimizer step.
        overhead: seconds before and after the steps: building, loading, validation.
        measuring: the same for a training that is measured on the test split too.
    """

    per_step: Mapping[str, float]
    overhead: float
    measuring: float

    def trial(self, method: str, steps: int) -> float:
        """A training of a rung."""
        return self.overhead + self.per_step[method] * steps

    def final(self, method: str, steps: int) -> float:
        """A training of the final."""
        return self.measuring + self.per_step[method] * steps


@dataclass(frozen=True, slots=True)
class Rung:
    """``count`` candidates for ``steps`` optimizer steps each."""

    count: int
    steps: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left to do.

    Attributes:
        rungs: the rungs to come; may be none.
        finalists: candidates of the final, the baseline not counted; 0 when no final fits.
        seeds: trainings of each in the final.
        seconds: how long all of it is expected to take.
    """

    rungs: tuple[Rung, ...]
    finalists: int
    seeds: int
    seconds: float


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last job ends, if each of ``workers`` takes the next job as soon as it is free.

    >>> makespan([3.0, 2.0, 2.0], 2)
    4.0
    """
    free = [0.0] * max(min(workers, len(seconds)), 1)
    for job in seconds:
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def ranked(scores: Sequence[tuple[float | None, float | None]], higher_is_better: bool) -> list[int]:
    """Places of the candidates, best first.

    Args:
        scores: of each candidate its validation value, and its loss there (lower is better), which decides between
            equal values; ``None``, NaN and infinity come last. Whoever comes first goes first where both are equal.
        higher_is_better: direction of the value.
    """

    def key(place: int) -> tuple[bool, float, float, int]:
        value, tie = (score if score is not None and math.isfinite(score) else None for score in scores[place])
        if value is None:
            return True, 0.0, 0.0, place
        return False, -value if higher_is_better else value, math.inf if tie is None else tie, place

    return sorted(range(len(scores)), key=key)


@dataclass(frozen=True, slots=True)
class _Planner:
    """What stays the same while lengths and counts are tried."""

    methods: Sequence[str]
    baseline: str | None
    full: int
    costs: Costs
    seconds: float
    workers: int
    rules: Rules

    def rungs(self, count: int, finalists: int, steps: int) -> tuple[Rung, ...]:
        """Rungs from ``count`` candidates down to ``finalists``, the first of ``steps``; none is repeated in full."""
        found: list[Rung] = []
        while count > finalists and not (found and found[-1].steps == self.full):
            found.append(Rung(count, min(steps, self.full)))
            count, steps = max(math.ceil(count / self.rules.eta), finalists), steps * self.rules.eta
        return tuple(found)

    def plan(self, count: int, finalists: int, seeds: int, steps: int | None) -> Plan:
        """With its expected time; ``steps`` of the first rung, ``None`` for no rung."""
        rungs = self.rungs(count, finalists, steps) if steps is not None else ()
        seconds = 0.0
        for number, rung in enumerate(rungs):
            jobs = [self.costs.trial(method, rung.steps) for method in self.methods[:count]]
            mean = math.fsum(jobs) / len(jobs)
            seconds += makespan(jobs if number == 0 else [mean] * rung.count, self.workers)
        dearest = sorted(self.methods[:count], key=lambda method: self.costs.per_step[method])[-finalists:]
        last = [*([self.baseline] if self.baseline else []), *dearest]
        seconds += makespan([self.costs.final(method, self.full) for method in last] * seeds, self.workers)
        return Plan(rungs, min(finalists, count), seeds, seconds)

    def fits(self, plan: Plan) -> bool:
        return plan.seconds <= MARGIN * self.seconds

    def longest(self, count: int, finalists: int, seeds: int, least: int) -> Plan | None:
        """The plan with the longest first rung of at least ``least`` steps that fits."""
        plan = self.plan(count, finalists, seeds, least)
        if least > self.full or not self.fits(plan):
            return None
        whole = self.plan(count, finalists, seeds, self.full)
        if self.fits(whole):
            return whole
        low, high = least, self.full - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(self.plan(count, finalists, seeds, middle)):
                low = middle
            else:
                high = middle - 1
        return self.plan(count, finalists, seeds, low)


def first_plan(
    methods: Sequence[str],
    baseline: str | None,
    full: int,
    costs: Costs,
    seconds: float,
    *,
    workers: int,
    rules: Rules,
    seeds: int,
) -> tuple[Plan, int]:
    """The plan before anything is known about the candidates, and how many of them it takes.

    All candidates in rungs as long as possible, if that fits. Otherwise fewer candidates, the last ones first, but so
    many that a rung has ``eta`` times as many as there are finalists; then fewer finalists; with a single one left,
    fewer candidates again, but of every method one. The number of seeds stays.

    Args:
        methods: of each candidate its method, every method once before any comes again.
        baseline: the method that is in the final anyway.
        full: optimizer steps of the full training.
        costs: measured times.
        seconds: time left.
        workers: trainings at a time.
        rules: how to search.
        seeds: trainings of each finalist.

    Returns:
        The plan; it takes more than ``seconds`` if nothing fits, and is then the smallest that makes sense.
    """
    planner = _Planner(methods, baseline, full, costs, seconds, workers, rules)
    least = max(math.ceil(rules.shortest * full), 1)
    fewest = len(set(methods))
    for finalists in range(min(rules.finalists, len(methods)), 0, -1):
        last = fewest if finalists == 1 else max(fewest, min(rules.eta * finalists, len(methods)))
        for count in range(len(methods), last - 1, -1):
            plan = planner.longest(count, finalists, seeds, least)
            if plan is not None:
                return plan, count
    return planner.plan(fewest, 1, seeds, least), fewest


def next_plan(
    methods: Sequence[str],
    baseline: str | None,
    full: int,
    costs: Costs,
    seconds: float,
    *,
    workers: int,
    rules: Rules,
    seeds: int,
    before: int,
) -> Plan:
    """The plan for those that a rung has kept, best first.

    Longer rungs if they fit; otherwise the final at once, with as many as fit; then with fewer seeds; or no final.

    Args:
        methods: of each candidate that is left its method.
        before: steps of the rung before.

    The other arguments are those of :func:`first_plan`.
    """
    planner = _Planner(methods, baseline, full, costs, seconds, workers, rules)
    most = min(rules.finalists, len(methods))
    least = math.ceil(_LONGER * before)
    if len(methods) > most and least <= full:
        plan = planner.longest(len(methods), most, seeds, least)
        if plan is not None:
            return plan
    tries = [(finalists, seeds) for finalists in range(most, 0, -1)]
    tries += [(1, fewer) for fewer in range(seeds - 1, 0, -1)]
    for finalists, number in tries:
        plan = planner.plan(finalists, finalists, number, None)
        if planner.fits(plan):
            return plan
    return Plan((), 0, 0, 0.0)
