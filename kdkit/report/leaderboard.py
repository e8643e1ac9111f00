"""Methods over seeds: one row each, tested against a baseline, in a table and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdkit.errors import InputError, did_you_mean
from kdkit.report._format import (
    Metric,
    difference_text,
    finite,
    interval_text,
    join,
    metric,
    p_phrase,
    p_text,
    seconds_text,
    spread_text,
    value_text,
)
from kdkit.report.statistics import Paired, holm, mean_interval, mean_std, paired_test

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ALPHA",
    "Row",
    "conclude",
    "format_table",
    "how_tested",
    "row_cells",
    "sentences",
    "summarize",
    "table_digits",
    "table_header",
]

ALPHA = 0.05
"""A corrected p-value below this is called an effect."""

COLUMNS = ("method", "{metric}", "difference", "95 % interval", "p (Holm)", "verdict", "ECE", "time", "seeds")


@dataclass(slots=True)
class Row:
    """One method over its seeds.

    Attributes:
        method: its name in the results.
        losses: the losses it uses.
        metric: name of the primary metric; ``higher_is_better``: its direction.
        is_baseline: whether this is what the others are compared with.
        values: primary metric by seed (finite values of cells that finished).
        n, failed: cells that count, and cells that failed or gave no finite number.
        mean, std: over the seeds, sample standard deviation (``None`` for one seed).
        low, high: 95 % t interval of the mean.
        pairs: seeds shared with the baseline.
        difference, difference_low, difference_high: mean of method minus baseline over the pairs, 95 % t interval.
        p, p_corrected: two-sided paired t-test, alone and after Holm's correction over the methods tested.
        ece, ece_std: expected calibration error over the seeds.
        seconds: mean time of a cell.
        verdict: ``"baseline"``, ``"helps"``, ``"hurts"``, ``"no difference shown"``, ``"not tested"``, ``"failed"``.
        note: why there is no test, or what else the reader must know.
    """

    method: str
    losses: list[str]
    metric: str
    higher_is_better: bool
    is_baseline: bool = False
    values: dict[str, float] = field(default_factory=dict)
    n: int = 0
    failed: int = 0
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    ece: float | None = None
    ece_std: float | None = None
    seconds: float | None = None
    verdict: str = ""
    note: str = ""


def summarize(results: Iterable[Mapping[str, Any]], baseline: str, primary: str, higher_is_better: bool) -> list[Row]:
    """One row per method, best mean first.

    Methods are paired with the baseline by seed; a cell that was run again counts once, with its last outcome.
    A method "helps" when Holm's corrected p-value is below 0.05 and the difference points the right way.

    Args:
        results: one mapping per cell: ``method``, ``seed``, ``metrics``, ``status``, ``seconds``, ``losses``.
        baseline: the method that the others are compared with.
        primary: the metric to compare.
        higher_is_better: its direction.

    Raises:
        InputError: when there is no result, or none of the baseline.
    """
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        cells.setdefault(str(result["method"]), {})[str(result.get("seed"))] = result
    if not cells:
        raise InputError("summarize: results must hold at least one cell, got none; run the comparison first")
    if baseline not in cells:
        raise InputError(
            f"summarize: baseline must be one of the methods, got {baseline!r}{did_you_mean(baseline, cells)}"
        )
    rows = [_row(method, by_seed, primary, higher_is_better) for method, by_seed in cells.items()]
    reference = next(row for row in rows if row.method == baseline)
    reference.is_baseline = True
    for row in rows:
        if row is not reference:
            _compare(row, reference)
    return conclude(rows)


def conclude(rows: list[Row]) -> list[Row]:
    """Correct the p-values over all rows, give the verdicts, sort the best first."""
    for row, corrected in zip(rows, holm([row.p for row in rows])):
        row.p_corrected = corrected
        row.verdict = _verdict(row)
    return sorted(rows, key=_order)


def _row(method: str, by_seed: Mapping[str, Mapping[str, Any]], primary: str, higher_is_better: bool) -> Row:
    row = Row(method, [], primary, higher_is_better)
    ece, seconds = [], []
    for seed, cell in by_seed.items():
        row.losses = [str(name) for name in cell.get("losses") or row.losses]
        metrics = cell.get("metrics") or {}
        value = finite(metrics.get(primary))
        if cell.get("status", "ok") != "ok" or value is None:
            row.failed += 1
            continue
        row.values[seed] = value
        ece.append(finite(metrics.get("ece")))
        seconds.append(finite(cell.get("seconds")))
    row.n = len(row.values)
    row.mean, row.std = mean_std(list(row.values.values()))
    row.low, row.high = mean_interval(list(row.values.values())) or (None, None)
    row.ece, row.ece_std = mean_std([value for value in ece if value is not None])
    row.seconds, _ = mean_std([value for value in seconds if value is not None])
    return row


def _compare(row: Row, reference: Row) -> None:
    shared = [seed for seed in row.values if seed in reference.values]
    paired: Paired = paired_test([row.values[seed] for seed in shared], [reference.values[seed] for seed in shared])
    row.pairs, row.difference, row.p = paired.n, paired.difference, paired.p
    row.difference_low, row.difference_high = paired.low, paired.high
    row.note = paired.reason
    if paired.n and paired.n < max(row.n, reference.n):
        row.note = "; ".join(filter(None, [row.note, f"paired on {paired.n} of {max(row.n, reference.n)} seeds"]))


def _verdict(row: Row) -> str:
    if not row.n:
        return "failed"
    if row.is_baseline:
        return "baseline"
    if row.p_corrected is None or row.difference is None:
        return "not tested"
    if row.p_corrected >= ALPHA:
        return "no difference shown"
    return "helps" if (row.difference > 0) == row.higher_is_better else "hurts"


def _order(row: Row) -> tuple[bool, float, str]:
    mean = row.mean or 0.0
    return row.mean is None, -mean if row.higher_is_better else mean, row.method


def table_digits(rows: Sequence[Row]) -> int:
    """Decimals for per-cent values: two when some spread would vanish with one."""
    spreads = [row.std for row in rows if row.std is not None and row.std > 0]
    return 2 if spreads and min(spreads) < 0.001 else 1


def row_cells(row: Row, digits: int) -> list[str]:
    """The cells of a row as text, in the order of ``COLUMNS``."""
    of = metric(row.metric, row.higher_is_better)
    return [
        row.method,
        spread_text(of, row.mean, row.std, digits),
        difference_text(of, row.difference, digits),
        interval_text(of, row.difference_low, row.difference_high, digits),
        p_text(row.p_corrected),
        row.verdict,
        spread_text(metric("ece"), row.ece, row.ece_std),
        seconds_text(row.seconds),
        f"{row.n} of {row.n + row.failed}" if row.failed else str(row.n),
    ]


def format_table(rows: Sequence[Row]) -> tuple[Table, str]:
    """The leaderboard for a terminal: a ``rich`` table, and the same as plain lines for everything else."""
    from rich.table import Table
    from rich.text import Text

    names = table_header(rows)
    digits = table_digits(rows)
    cells = [row_cells(row, digits) for row in rows]
    keep = [i for i in range(len(names)) if i < 2 or any(line[i] != "–" for line in cells)]
    styles = {"helps": "bold green", "hurts": "bold red", "baseline": "bold", "failed": "red"}
    table = Table(header_style="bold")
    for i in keep:
        table.add_column(names[i], justify="left" if i in (0, 5) else "right", no_wrap=i < 2)
    for row, line in zip(rows, cells):
        table.add_row(*(Text(line[i]) for i in keep), style=styles.get(row.verdict, ""))
    widths = {i: max(len(names[i]), *(len(line[i]) for line in cells)) for i in keep}
    lines = [
        "  ".join(f"{line[i]:<{widths[i]}}" if i in (0, 5) else f"{line[i]:>{widths[i]}}" for i in keep).rstrip()
        for line in [names, *cells]
    ]
    lines.insert(1, "  ".join("-" * widths[i] for i in keep))
    return table, "\n".join(lines)


def table_header(rows: Sequence[Row]) -> list[str]:
    """Column names, with the primary metric's own label."""
    label = metric(rows[0].metric, rows[0].higher_is_better).label if rows else "value"
    return [name.format(metric=label) for name in COLUMNS]


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows say, in sentences: which methods helped, which did not, what could not be tested."""
    reference = next(row for row in rows if row.is_baseline)
    of, digits = metric(reference.metric, reference.higher_is_better), table_digits(rows)
    tested = [row for row in rows if row.p is not None]
    if reference.n:
        mean = spread_text(of, reference.mean, reference.std, digits)
        spread = " (mean ± standard deviation)" if reference.std is not None else ""
        said = [f"The baseline, {reference.method}, reaches {mean} {of.label}{spread} over {_seeds(reference.n)}."]
    else:
        said = [f"Every cell of the baseline, {reference.method}, failed, so nothing could be compared."]
    if tested:
        said += _effects(rows, of, digits)
        said.append(how_tested(len(tested)))
    for note in dict.fromkeys(row.note for row in rows if row.verdict == "not tested"):
        named = [_named(row, of, digits) for row in rows if row.verdict == "not tested" and row.note == note]
        said.append(f"Not tested ({note}): {join(named)}.")
    partial = [f"{row.method} ({row.note})" for row in rows if row.note and row.verdict != "not tested"]
    if partial:
        said.append(f"Differences count only the seeds shared with the baseline: {join(partial)}.")
    failed = [f"{row.method} ({row.failed} of {row.failed + row.n})" for row in rows if row.failed]
    if failed:
        said.append(f"Failed cells: {join(failed)}.")
    return said


def how_tested(count: int, against: str = "the baseline") -> str:
    """A sentence on the test behind the verdicts."""
    correction = f" (p corrected by Holm's method for {count} tests, the intervals are not)" if count > 1 else ""
    return (
        f"Each method was compared with {against} seed by seed, by a two-sided paired t-test{correction}; "
        f"an effect is claimed only below p = {ALPHA}."
    )


def _effects(rows: Sequence[Row], of: Metric, digits: int) -> list[str]:
    groups = {verdict: [row for row in rows if row.verdict == verdict] for verdict in ("helps", "hurts")}
    neutral = [row for row in rows if row.verdict == "no difference shown"]
    said = []
    for verdict, word in (("helps", "helped"), ("hurts", "hurt")):
        named = [_named(row, of, digits, p=True) for row in groups[verdict]]
        if named:
            said.append(f"{len(named)} of {_tested(rows)} {word}: {join(named)}.")
        elif verdict == "helps":
            said.append("No method was shown to help.")
    if neutral:
        named = [_named(row, of, digits, p=True) for row in neutral]
        said.append(f"No difference was shown for {join(named)}; with so few seeds that does not prove there is none.")
    return said


def _tested(rows: Sequence[Row]) -> str:
    count = sum(row.p is not None for row in rows)
    return f"{count} method{'s' if count != 1 else ''}"


def _named(row: Row, of: Metric, digits: int, *, p: bool = False) -> str:
    if row.difference is None:
        return f"{row.method} ({value_text(of, row.mean, digits)})"
    tail = f", {p_phrase(row.p_corrected)}" if p else ""
    return f"{row.method} ({difference_text(of, row.difference, digits)}{tail})"


def _seeds(n: int) -> str:
    return f"{n} seeds" if n != 1 else "one seed"
