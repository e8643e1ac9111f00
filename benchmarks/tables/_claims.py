"""Claims of papers, tested on the results of a table: paired by seed, corrected for the number of comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables._cells import Plan
from benchmarks.tables._summary import by_row
from benchmarks.tables._table import Claim, Table
from kdkit.report._format import Metric, difference_text, interval_text, metric, p_text, spread_text
from kdkit.report.statistics import holm, mean_std, paired_test

__all__ = ["CLAIM_HEADER", "Finding", "claim_cells", "counts", "findings"]

LEVEL = 0.05
CLAIM_HEADER = (
    "claim",
    "holds?",
    "difference, 95 %",
    "p (Holm)",
    "n",
    "compared",
    "metric",
    "first",
    "second",
    "source",
)
_Found = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]


@dataclass(slots=True)
class Finding:
    """What the results say of a claim in one place.

    Attributes:
        claim: the claim.
        compared: both rows, and the pair, in words.
        of: the metric.
        better, worse: values of the row that is said to be better, and of the other, for the seeds in common; shares
            are shares of one.
        difference, low, high: mean of better minus worse over the seeds in common, with its 95 % t interval.
        p: two-sided, of the paired t-test, after Holm's correction over all findings of a table.
        n: seeds in common.
        verdict: "yes" (p < 0.05 in the direction of the claim), "no" (p < 0.05 against it), "not shown", "not run".
        note: why there is no test.
    """

    claim: Claim
    compared: str
    of: Metric
    better: dict[int, float]
    worse: dict[int, float]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n: int = 0
    verdict: str = "not run"
    note: str = ""


def findings(plan: Plan, records: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """All claims of the table, each in every pair that it speaks of; Holm's correction runs over all of them."""
    found = by_row(records)
    listed = [each for claim in plan.table.claims for each in _of_claim(claim, plan, found)]
    raw: list[float | None] = []
    for each in listed:
        seeds = [seed for seed in each.better if seed in each.worse]
        each.better, each.worse = ({seed: side[seed] for seed in seeds} for side in (each.better, each.worse))
        result = paired_test(list(each.better.values()), list(each.worse.values()))
        each.difference, each.low, each.high, each.n = result.difference, result.low, result.high, result.n
        each.note = result.reason
        raw.append(result.p)
    for each, p in zip(listed, holm(raw), strict=True):
        each.p = p
        each.verdict = _verdict(each)
    return listed


def _verdict(each: Finding) -> str:
    if not each.n:
        return "not run"
    if each.p is None or each.difference is None or each.p >= LEVEL:
        return "not shown"
    return "yes" if (each.difference > 0) == bool(each.of.higher_is_better) else "no"


def _of_claim(claim: Claim, plan: Plan, found: _Found) -> list[Finding]:
    of = metric(claim.metric)
    if of.higher_is_better is None:
        of = metric(claim.metric, higher_is_better=False)
    (better, _, first), (worse, _, second) = claim.better.partition("@"), claim.worse.partition("@")
    places = [(first, second)] if first else [(pair, pair) for pair in claim.pairs or plan.table.pairs]
    listed = []
    for one, other in places:
        if plan.table.row_missing(one, better) or plan.table.row_missing(other, worse):
            continue
        values = _values(claim, plan, found, one, better), _values(claim, plan, found, other, worse)
        listed.append(Finding(claim, _words(claim, plan.table, (better, one), (worse, other)), of, *values))
    return listed


def _values(claim: Claim, plan: Plan, found: _Found, pair: str, method: str) -> dict[int, float]:
    """By seed; the gain over another row where the claim is about gains."""
    own = _metric(plan, found, pair, method, claim.metric)
    if not claim.over:
        return own
    base = _metric(plan, found, pair, claim.over, claim.metric)
    return {seed: value - base[seed] for seed, value in own.items() if seed in base}


def _metric(plan: Plan, found: _Found, pair: str, method: str, name: str) -> dict[int, float]:
    place = plan.same.get((pair, method), pair)
    records = found.get((place, method), {})
    values = {seed: record["metrics"].get(name) for seed, record in sorted(records.items()) if record["status"] == "ok"}
    return {seed: float(value) for seed, value in values.items() if value is not None and math.isfinite(value)}


def _words(claim: Claim, table: Table, better: tuple[str, str], worse: tuple[str, str]) -> str:
    titles = [table.row_title(method) for method, _ in (better, worse)]
    gain = f"gain over {table.row_title(claim.over)}: " if claim.over else ""
    if better[1] != worse[1]:
        return f"{gain}{titles[0]} ({_pair(better[1])}) − {titles[1]} ({_pair(worse[1])})"
    where = f", {_pair(better[1])}" if len(table.pairs) > 1 else ""
    return f"{gain}{titles[0]} − {titles[1]}{where}"


def _pair(name: str) -> str:
    return name.replace("/", " → ")


def claim_cells(each: Finding) -> list[str]:
    """The texts of a finding, as in :data:`CLAIM_HEADER`."""
    digits = 2
    sides = [
        spread_text(each.of, *mean_std(list(values.values())), digits=digits) for values in (each.better, each.worse)
    ]
    return [
        each.claim.text,
        each.verdict,
        _difference(each, digits),
        p_text(each.p) if each.p is not None else "",
        str(each.n),
        each.compared,
        f"{each.of.label} {'↑' if each.of.higher_is_better else '↓'}",
        *sides,
        each.claim.source,
    ]


def _difference(each: Finding, digits: int) -> str:
    told = difference_text(each.of, each.difference, digits, unit=False)
    if each.low is None:
        return told
    return f"{told} ({interval_text(each.of, each.low, each.high, digits)})"


def counts(listed: Sequence[Finding]) -> str:
    """How many hold, in words."""
    told = [f"{sum(each.verdict == kind for each in listed)} {kind}" for kind in ("yes", "no", "not shown")]
    rest = sum(each.verdict == "not run" for each in listed)
    return ", ".join(told) + (f", {rest} not run" if rest else "")
