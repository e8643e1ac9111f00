"""The plan of a search within a time: arithmetic only."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kdkit._config.search import Rules
from kdkit._run.rungs import MARGIN, Costs, Plan, Rung, first_plan, makespan, next_plan, ranked

RULES = Rules(budget=1e9, eta=3, finalists=3, shortest=0.05, trial_steps=20)
METHODS = ["kd", "nkd", "kd", "nkd"] + ["kd"] * 20
COSTS = Costs({"ce": 0.01, "kd": 0.01, "nkd": 0.02}, overhead=0.5, measuring=1.0)


def first(seconds: float, methods: list[str] = METHODS, **changes: object) -> tuple[Plan, int]:
    options: dict = {"workers": 1, "rules": RULES, "seeds": 3, **changes}
    return first_plan(methods, "ce", 1000, COSTS, seconds, **options)


def by_hand(plan: Plan, methods: list[str]) -> float:
    """Seconds of a plan, one training after the other."""
    seconds = 0.0
    mean = sum(COSTS.per_step[method] for method in methods) / len(methods)
    for rung in plan.rungs:
        seconds += rung.count * (0.5 + mean * rung.steps)
    dearest = sorted((COSTS.per_step[method] for method in methods), reverse=True)[: plan.finalists]
    return seconds + plan.seeds * sum(1.0 + step * 1000 for step in [0.01, *dearest])


@pytest.mark.parametrize(
    ("jobs", "workers", "seconds"),
    [([], 3, 0.0), ([2.0], 3, 2.0), ([1.0, 1.0, 1.0], 2, 2.0), ([3.0, 2.0, 2.0], 2, 4.0), ([1.0] * 7, 1, 7.0)],
)
def test_jobs_take_the_worker_that_is_free_first(jobs: list[float], workers: int, seconds: float) -> None:
    assert makespan(jobs, workers) == seconds


def test_the_best_come_first_and_what_has_no_value_last() -> None:
    scores = [(0.9, 0.5), (None, None), (0.95, 0.4), (math.nan, 0.1), (0.9, 0.3), (0.9, 0.5)]
    assert ranked(scores, True) == [2, 4, 0, 5, 1, 3]
    assert ranked([(3.0, None), (1.0, None), (2.0, None), (None, 0.0)], False) == [1, 2, 0, 3]
    assert ranked([(-math.inf, None), (math.inf, None), (1.0, None)], True) == [2, 0, 1]


def test_rungs_grow_by_eta_while_candidates_shrink_by_it() -> None:
    plan, count = first(400.0)
    assert count == 24
    assert [rung.count for rung in plan.rungs] == [24, 8]
    assert plan.rungs[1].steps == 3 * plan.rungs[0].steps
    assert plan.finalists == 3 and plan.seeds == 3


def test_the_first_rung_is_the_longest_that_fits() -> None:
    plan, _ = first(400.0)
    assert plan.seconds == pytest.approx(by_hand(plan, METHODS))
    assert plan.seconds <= MARGIN * 400
    steps = plan.rungs[0].steps + 1
    assert by_hand(replace(plan, rungs=(Rung(24, steps), Rung(8, 3 * steps))), METHODS) > MARGIN * 400


@pytest.mark.parametrize("seconds", [250.0, 300.0, 500.0, 1000.0, 5000.0, 1e6])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_plan_fits_or_is_the_smallest(seconds: float, workers: int) -> None:
    plan, count = first(seconds, workers=workers)
    if plan.seconds > MARGIN * seconds:
        assert count == 2 and plan.finalists == 1 and plan.rungs[0].steps == 50
    else:
        assert plan.rungs[0].count == count and plan.rungs[0].steps >= 50


def test_more_time_never_gives_a_shorter_search() -> None:
    work = []
    for seconds in range(100, 3000, 100):
        plan, count = first(float(seconds))
        if plan.seconds <= MARGIN * seconds:
            work.append((count, plan.finalists, plan.rungs[0].steps if count == 24 else 0))
    assert len(work) > 20
    assert work == sorted(work)


def test_with_plenty_of_time_every_candidate_is_trained_in_full_once() -> None:
    plan, _ = first(1e6)
    assert plan.rungs == (Rung(24, 1000),)


def test_little_time_costs_candidates_first_and_finalists_then_but_no_method_and_no_seed() -> None:
    plan, count = first(232.0)
    assert 9 <= count < 24 and plan.finalists == 3
    plan, count = first(190.0)
    assert 6 <= count <= 24 and plan.finalists == 2
    smallest = by_hand(Plan((Rung(2, 50),), 1, 3, 0.0), ["kd", "nkd"])
    plan, count = first(smallest / MARGIN + 1e-6)
    assert (count, plan.finalists, plan.seeds) == (2, 1, 3)
    assert plan.rungs == (Rung(2, 50),)
    plan, _ = first(smallest / MARGIN * 0.99)
    assert plan.seconds == pytest.approx(smallest)


def test_as_many_candidates_as_finalists_need_no_rung() -> None:
    plan, count = first(1000.0, ["kd", "nkd"])
    assert (plan.rungs, plan.finalists, count) == ((), 2, 2)


def test_several_workers_afford_longer_rungs() -> None:
    alone, together = first(300.0)[0], first(300.0, workers=2)[0]
    assert together.rungs[0].steps > 2 * alone.rungs[0].steps


def test_a_baseline_costs_its_part_of_the_final() -> None:
    options: dict = {"workers": 1, "rules": RULES, "seeds": 3}
    without, _ = first_plan(["kd"], None, 1000, COSTS, 1e4, **options)
    beside, _ = first_plan(["kd"], "ce", 1000, COSTS, 1e4, **options)
    assert beside.seconds - without.seconds == pytest.approx(3 * 11.0)


def following(seconds: float, methods: list[str], before: int, **changes: object) -> Plan:
    options: dict = {"workers": 1, "rules": RULES, "seeds": 3, "before": before, **changes}
    return next_plan(methods, "ce", 1000, COSTS, seconds, **options)


def test_the_next_rung_follows_from_the_time_that_is_left() -> None:
    eight = ["kd"] * 8
    slow, fast = following(230.0, eight, 100), following(400.0, eight, 100)
    assert slow.rungs[0].count == fast.rungs[0].count == 8
    assert 150 <= slow.rungs[0].steps < fast.rungs[0].steps <= 1000


def test_a_rung_that_would_not_be_longer_is_left_out() -> None:
    assert following(160.0, ["kd"] * 8, 100).rungs == ()
    assert following(1e6, ["kd"] * 8, 1000).rungs == ()
    assert following(1e6, ["kd"] * 3, 100).rungs == ()


def test_the_final_shrinks_with_the_time_and_may_not_fit_at_all() -> None:
    three = ["kd"] * 3  # a training of the final takes 11 s, three seeds of it and of the baseline 66 s
    sizes = [following(seconds / MARGIN + 1e-6, three, 100) for seconds in (132, 99, 66, 44, 22, 21)]
    assert [(plan.finalists, plan.seeds) for plan in sizes] == [(3, 3), (2, 3), (1, 3), (1, 2), (1, 1), (0, 0)]
