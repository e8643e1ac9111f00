"""Published value and ours side by side, cell by cell, with what the difference means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tables._cells import ALONE, Plan
from kdkit.report._format import metric
from kdkit.report.statistics import holm, mean_interval, mean_std, paired_test

__all__ = ["Line", "by_row", "summarise", "verdict"]

CONFIDENCE = 0.95


@dataclass(slots=True)
class Line:
    """One row of one pair.

    Shares are percentages; for a table of error rates they are accuracies too.

    Attributes:
        pair, method, title: which row.
        published, published_spread: the source's mean and standard deviation.
        values, best: by seed, after the last epoch and after the best one.
        mean, std, low, high: of the values, with the 95 % t interval of the mean.
        best_mean, best_std: of the best epochs.
        difference: ours minus published, for the epoch that the source reports.
        p: Holm-corrected, paired by seed against the student alone; ``None`` without a test.
        gain: mean difference to the student alone over the seeds in common.
        ece, nll, agreement, seconds: means over the seeds.
        failed: seeds that failed.
        verdict: "reproduced", "above", "below", "not compared", "not run", "failed", "missing".
        note: why.
    """

    pair: str
    method: str
    title: str
    published: float | None = None
    published_spread: float | None = None
    values: dict[int, float] = field(default_factory=dict)
    best: dict[int, float] = field(default_factory=dict)
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    best_mean: float | None = None
    best_std: float | None = None
    difference: float | None = None
    gain: float | None = None
    p: float | None = None
    ece: float | None = None
    nll: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    failed: int = 0
    verdict: str = "not run"
    note: str = ""


def verdict(values: Sequence[float], published: float, runs: int | None) -> tuple[str, str]:
    r"""Whether ours and a published mean can be told apart.

    The published mean of ``runs`` runs has an error of its own, of which only our standard deviation :math:`s` tells:
    both agree if :math:`|\bar x - p| \le t_{0.975, n - 1}\, s \sqrt{1 / n + 1 / m}`, with :math:`m` = ``runs``, or 1
    where the source does not say.

    Returns:
        "reproduced", "above" or "below"; "not compared" for a single seed, with the reason.
    """
    from scipy import stats

    mean, std = mean_std(values)
    if mean is None:
        return "not run", ""
    if std is None:
        return "not compared", "one seed has no spread to judge a difference by"
    half = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std * math.sqrt(1 / len(values) + 1 / (runs or 1))
    )
    if abs(mean - published) <= half:
        return "reproduced", f"differences up to {half:.2f} are within the noise"
    return ("above" if mean > published else "below"), f"the difference is larger than the noise of {half:.2f}"


def summarise(
    plan: Plan, records: Sequence[Mapping[str, Any]], teachers: Sequence[Mapping[str, Any]]
) -> dict[str, list[Line]]:
    """Pair -> its rows: teacher, student alone, then the methods in the order of the table."""
    table = plan.table
    found = by_row(records)
    pairs = dict.fromkeys([*(planned.pair for planned in plan.cells), *(pair for pair, _ in plan.missing)])
    lines: dict[str, list[Line]] = {}
    for pair in pairs:
        rows = [_teacher(plan, pair, teachers)]
        alone = plan.same.get((pair, ALONE), pair)
        rows.append(_line(plan, pair, ALONE, found.get((alone, ALONE), {})))
        asked = [planned.method for planned in plan.cells if planned.pair == pair]
        for method in table.methods:
            if method in asked or (pair, method) in plan.missing:
                rows.append(_line(plan, pair, method, found.get((pair, method), {})))
        _test(rows)
        lines[pair] = rows
    return lines


def by_row(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """(pair, method) -> seed -> record; a cell that was run again counts once, with its last outcome."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((str(record["pair"]), str(record["method"])), {})[int(record["seed"])] = record
    return found


def _teacher(plan: Plan, pair: str, teachers: Sequence[Mapping[str, Any]]) -> Line:
    published = plan.table.alone(pair, "teacher")
    line = Line(pair, "teacher", f"teacher: {plan.table.pairs[pair].teacher}", published)
    values = {str(record["key"]): record for record in teachers if record["pair"] == pair}
    if values:
        metrics, of = [record["metrics"] for record in values.values()], plan.table.metric_of(pair)
        line.values = {place: _percent(each[of], of) for place, each in enumerate(metrics)}
        line.mean, line.std = mean_std(list(line.values.values()))
        line.ece, line.nll = (_mean(each.get(name) for each in metrics) for name in ("ece", "nll"))
        line.verdict = "not compared"
        if published is not None and line.mean is not None:
            line.difference, line.note = line.mean - published, "one teacher has no spread to judge a difference by"
    return line


def _percent(value: float, of: str) -> float:
    return 100 * value if metric(of).share else value


def _mean(values: Any) -> float | None:
    kept = [float(value) for value in values if value is not None and math.isfinite(float(value))]
    return math.fsum(kept) / len(kept) if kept else None


def _line(plan: Plan, pair: str, method: str, by_seed: Mapping[int, Mapping[str, Any]]) -> Line:
    table = plan.table
    if method == ALONE:
        line = Line(pair, ALONE, f"student: {table.pairs[pair].student}", table.alone(pair, "student"))
    else:
        known = table.methods[method]
        line = Line(pair, method, known.title, table.published(method, pair), known.spread.get(pair))
    reason = plan.missing.get((pair, method))
    if reason:
        line.verdict, line.note = "missing", reason
        return line
    good = {seed: record for seed, record in sorted(by_seed.items()) if record["status"] == "ok"}
    line.failed = len(by_seed) - len(good)
    if not good:
        if line.failed:
            line.verdict, line.note = "failed", str(next(iter(by_seed.values()))["error"])
        return line
    of = table.metric_of(pair)
    line.values = {seed: _percent(record["metrics"][of], of) for seed, record in good.items()}
    line.best = {seed: _percent(record["best"]["value"], of) for seed, record in good.items()}
    line.mean, line.std = mean_std(list(line.values.values()))
    line.best_mean, line.best_std = mean_std(list(line.best.values()))
    line.low, line.high = mean_interval(list(line.values.values())) or (None, None)
    metrics = [record["metrics"] for record in good.values()]
    line.ece, line.nll, line.agreement = (
        _mean(each.get(name) for each in metrics) for name in ("ece", "nll", "agreement")
    )
    line.seconds = _mean(record["seconds"] for record in good.values())
    _judge(line, table.epoch, table.runs)
    return line


def _judge(line: Line, epoch: str, runs: int | None) -> None:
    compared = line.best if epoch == "best" else line.values
    if line.published is None:
        line.verdict = "not compared"
        return
    line.difference = math.fsum(compared.values()) / len(compared) - line.published
    line.verdict, line.note = verdict(list(compared.values()), line.published, runs)
    if line.failed:
        line.note += f"; {line.failed} seeds failed"


def _test(rows: Sequence[Line]) -> None:
    """Every method of a pair against the student alone, paired by seed, corrected for the number of methods."""
    alone = next(line for line in rows if line.method == ALONE)
    tested = [line for line in rows if line.method not in (ALONE, "teacher") and line.values and alone.values]
    raw: list[float | None] = []
    for line in tested:
        seeds = [seed for seed in line.values if seed in alone.values]
        result = paired_test([line.values[seed] for seed in seeds], [alone.values[seed] for seed in seeds])
        line.gain = result.difference
        raw.append(result.p)
    for line, p in zip(tested, holm(raw), strict=True):
        line.p = p
