"""Rows, verdicts, tables and sentences."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdkit.errors import InputError
from kdkit.report.leaderboard import format_table, sentences, summarize

BASE = [0.90, 0.91, 0.89, 0.92, 0.90]


def cells(method: str, values: list[float | None], metric: str = "accuracy", **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "losses": ["ce", method],
            "seed": seed,
            "metrics": {metric: value, "ece": 0.02 + 0.01 * seed},
            "seconds": 2.0 + seed,
            "status": "ok",
            **more,
        }
        for seed, value in enumerate(values)
    ]


def shifted(by: float, noise: float, seed: int) -> list[float | None]:
    generator = np.random.default_rng(seed)
    return [value + by + noise * float(generator.standard_normal()) for value in BASE]


def example() -> list[dict[str, Any]]:
    good, bad, none = shifted(0.03, 0.002, 1), shifted(-0.03, 0.002, 2), shifted(0, 0.01, 3)
    return [*cells("alone", list(BASE)), *cells("good", good), *cells("bad", bad), *cells("none", none)]


def test_rows_match_scipy_and_are_sorted() -> None:
    rows = summarize(example(), "alone", "accuracy", True)
    assert next(row.method for row in rows) == "good" and rows[-1].method == "bad"
    assert [row.mean for row in rows] == sorted((row.mean for row in rows), reverse=True)
    by_name = {row.method: row for row in rows}
    p = {}
    for name in ("good", "bad", "none"):
        row = by_name[name]
        values = list(row.values.values())
        expected = stats.ttest_rel(values, BASE)
        assert row.p == pytest.approx(expected.pvalue, rel=1e-9)
        interval = expected.confidence_interval(0.95)
        assert (row.difference_low, row.difference_high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert row.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        p[name] = expected.pvalue
    order = sorted(p, key=lambda name: p[name])
    assert by_name[order[0]].p_corrected == pytest.approx(3 * p[order[0]], rel=1e-9)
    assert by_name[order[2]].p_corrected == pytest.approx(p[order[2]], rel=1e-9)
    assert {name: row.verdict for name, row in by_name.items()} == {
        "alone": "baseline",
        "good": "helps",
        "bad": "hurts",
        "none": "no difference shown",
    }
    assert by_name["good"].ece == pytest.approx(0.04)
    assert by_name["good"].ece_std == pytest.approx(np.std([0.02, 0.03, 0.04, 0.05, 0.06], ddof=1))
    assert by_name["good"].seconds == pytest.approx(4.0)
    assert by_name["good"].losses == ["ce", "good"]


def test_lower_is_better_turns_verdicts_and_order() -> None:
    results = [*cells("alone", [20.0, 21.0, 19.0], "perplexity"), *cells("kl", [18.0, 18.9, 17.1], "perplexity")]
    rows = summarize(results, "alone", "perplexity", False)
    assert [row.method for row in rows] == ["kl", "alone"]
    assert rows[0].difference == pytest.approx(-2.0) and rows[0].verdict == "helps"
    assert "−2.00" in format_table(rows)[1]


def test_pairs_by_seed_whatever_the_order() -> None:
    results = example()
    again = summarize(list(reversed(results)), "alone", "accuracy", True)
    assert [row.p for row in again] == pytest.approx([row.p for row in summarize(results, "alone", "accuracy", True)])


def test_one_seed_is_not_tested_and_says_so() -> None:
    rows = summarize([*cells("alone", [0.9]), *cells("kd", [0.95])], "alone", "accuracy", True)
    assert rows[0].verdict == "not tested" and rows[0].p is None and rows[0].std is None
    assert rows[0].difference == pytest.approx(0.05)
    said = " ".join(sentences(rows))
    assert "Not tested (one seed only, so no test): kd (+5.0 points)." in said
    assert "t-test seed by seed" not in said and "over one seed" in said
    assert "±" not in format_table(rows)[1]


def test_the_same_difference_everywhere_is_not_tested() -> None:
    values: list[float | None] = [value + 0.01 for value in BASE]
    rows = summarize([*cells("alone", list(BASE)), *cells("kd", values)], "alone", "accuracy", True)
    assert rows[0].verdict == "not tested" and "undefined" in rows[0].note


def test_failed_and_non_finite_cells_are_counted() -> None:
    kd = cells("kd", [0.95, math.nan, None, 0.94, 0.96])
    kd[4] |= {"status": "failed", "error": "NaN", "metrics": {}}
    rows = summarize([*cells("alone", list(BASE)), *kd], "alone", "accuracy", True)
    row = rows[0]
    assert (row.n, row.failed, row.pairs) == (2, 3, 2)
    assert row.note == "paired on 2 of 5 seeds"
    assert row.difference == pytest.approx(((0.95 - 0.90) + (0.94 - 0.92)) / 2)
    assert "2 of 5" in format_table(rows)[1]
    assert "Failed cells: kd (3 of 5)." in sentences(rows)


def test_a_method_that_always_fails_comes_last() -> None:
    rows = summarize([*cells("kd", [None, None]), *cells("alone", [0.9, 0.8])], "alone", "accuracy", True)
    assert rows[-1].method == "kd" and rows[-1].verdict == "failed" and rows[-1].mean is None
    assert "–" in format_table(rows)[1]
    assert "Failed cells: kd (2 of 2)." in sentences(rows)


def test_a_baseline_that_always_fails() -> None:
    rows = summarize([*cells("alone", [None, None]), *cells("kd", [0.9, 0.8])], "alone", "accuracy", True)
    assert {row.method: row.verdict for row in rows} == {"alone": "failed", "kd": "not tested"}
    said = sentences(rows)
    assert said[0] == "Every cell of the baseline, alone, failed, so nothing could be compared."
    assert "Not tested (no seed in common with the baseline): kd (85.0 %)." in said


def test_a_cell_run_again_counts_once() -> None:
    failed = {"method": "kd", "seed": 0, "status": "failed", "metrics": {}}
    rows = summarize([failed, *cells("alone", [0.9, 0.8]), *cells("kd", [0.95, 0.9])], "alone", "accuracy", True)
    assert (rows[0].n, rows[0].failed) == (2, 0)


def test_bad_input_is_a_sentence() -> None:
    with pytest.raises(InputError, match="baseline must be one of the methods, got 'alon'; did you mean 'alone'"):
        summarize(cells("alone", [0.9]), "alon", "accuracy", True)
    with pytest.raises(InputError, match="at least one cell"):
        summarize([], "alone", "accuracy", True)


def test_sentences_name_what_helped_and_what_did_not() -> None:
    said = " ".join(sentences(summarize(example(), "alone", "accuracy", True)))
    assert "1 of 3 methods helped: good (+" in said
    assert "1 of 3 methods hurt: bad (−" in said
    assert "No difference was shown for none (" in said
    assert "p corrected by Holm's method for 3 tests" in said


def test_nothing_helps() -> None:
    results = [*cells("alone", list(BASE)), *cells("none", shifted(0, 0.01, 3))]
    said = sentences(summarize(results, "alone", "accuracy", True))
    assert "No method was shown to help." in said
    assert not any("Holm" in sentence for sentence in said)


def test_tables_hold_every_method_and_drop_empty_columns() -> None:
    results = example()
    for cell in results:
        cell["metrics"].pop("ece")
    rows = summarize(results, "alone", "accuracy", True)
    table, plain = format_table(rows)
    lines = plain.splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].split()[0] == "method" and "ECE" not in lines[0]
    assert [line.split()[0] for line in lines[2:]] == [row.method for row in rows]
    assert table.row_count == len(rows)
    assert [str(column.header) for column in table.columns][:3] == ["method", "accuracy", "difference"]


def test_names_with_markup_are_shown_as_they_are() -> None:
    from rich.console import Console

    table, _ = format_table(summarize(cells("[red]kd", [0.9, 0.8]), "[red]kd", "accuracy", True))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    assert "[red]kd" in console.export_text()
