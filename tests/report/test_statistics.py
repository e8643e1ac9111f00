"""The statistics against scipy, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdkit.errors import InputError
from kdkit.report.statistics import holm, mean_interval, mean_std, paired_test


def test_mean_and_sample_deviation_by_hand() -> None:
    assert mean_std([]) == (None, None)
    assert mean_std([0.5]) == (0.5, None)
    mean, std = mean_std([2.0, 4.0, 9.0])  # deviations -3, -1, 4: 26 / 2
    assert mean == 5.0
    assert std == pytest.approx(math.sqrt(13.0), rel=1e-15)


def test_interval_of_the_mean_by_hand() -> None:
    assert mean_interval([1.0]) is None
    low, high = mean_interval([1.0, 3.0]) or (0, 0)  # s / sqrt(2) = 1, t(0.975, 1) = 12.7062
    assert low == pytest.approx(2 - 12.7062047, rel=1e-8)
    assert high == pytest.approx(2 + 12.7062047, rel=1e-8)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_paired_test_equals_scipy(n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    baseline = generator.normal(0.9, 0.02, n)
    values = baseline + generator.normal(0.01, 0.01, n)
    expected = stats.ttest_rel(values, baseline)
    interval = expected.confidence_interval(0.95)
    found = paired_test(values.tolist(), baseline.tolist())
    assert found.n == n and found.reason == ""
    assert found.difference == pytest.approx(np.mean(values - baseline), rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_paired_test_by_hand() -> None:
    found = paired_test([1.0, 2.0, 6.0], [0.0, 0.0, 3.0])  # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641
    assert found.difference == pytest.approx(2.0)
    assert found.p == pytest.approx(0.0741799, rel=1e-5)
    assert found.low == pytest.approx(2 - 4.3026527 / math.sqrt(3), rel=1e-7)


def test_one_pair_and_no_pair_are_not_tested() -> None:
    one = paired_test([0.9], [0.8])
    assert one.difference == pytest.approx(0.1) and one.p is None and one.low is None
    assert one.reason == "one seed only, so no test"
    none = paired_test([], [])
    assert none.difference is None and none.p is None and "no seed in common" in none.reason


def test_differences_without_spread() -> None:
    same = paired_test([0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    shifted = paired_test([0.92, 0.82, 0.72], [0.9, 0.8, 0.7])
    assert shifted.p is None and shifted.low is None
    assert shifted.difference == pytest.approx(0.02)
    assert "the t-test is undefined" in shifted.reason
    zeros = paired_test([0.0, 0.0], [0.0, 0.0])
    assert zeros.p == 1.0


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError, match="values and baseline must have the same length, got 2 and 1"):
        paired_test([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 -> 0.04, 0.06, 0.06, 0.06 (monotone)
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == pytest.approx([0.03])
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([None, 0.01, None, 0.04]) == [None, pytest.approx(0.02), None, pytest.approx(0.04)]
