"""Paired comparisons over seeds: difference, t interval, t-test, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdkit.errors import InputError

__all__ = ["Paired", "holm", "mean_interval", "mean_std", "paired_test"]


@dataclass(frozen=True, slots=True)
class Paired:
    """Outcome of :func:`paired_test`.

    Attributes:
        n: number of pairs.
        difference: mean of value minus baseline; ``None`` without pairs.
        low, high: ends of the confidence interval of the mean difference, or ``None``.
        p: two-sided p-value, or ``None`` when no test is possible.
        reason: why there is no test; empty when there is one.
    """

    n: int
    difference: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reason: str = ""


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n − 1); the deviation is ``None`` for a single value."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean, ``mean ± t · s / √n``; ``None`` for fewer than two values."""
    mean, std = mean_std(values)
    if mean is None or std is None:
        return None
    half = _quantile(len(values) - 1, confidence) * std / math.sqrt(len(values))
    return mean - half, mean + half


def paired_test(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Paired:
    """Two-sided paired t-test of ``values`` against ``baseline``, pair by pair.

    ``t = d̄ / (s_d / √n)`` with n − 1 degrees of freedom. With one pair nothing can be tested. When all
    differences are equal the spread is zero: if they are all zero the p-value is 1, otherwise t is undefined and
    no test is claimed.

    Args:
        values, baseline: one number per pair, in the same order.
        confidence: level of the interval.

    Raises:
        InputError: when the lengths differ.
    """
    if len(values) != len(baseline):
        raise InputError(
            f"paired_test: values and baseline must have the same length, got {len(values)} and {len(baseline)}; "
            "pass one number of each per pair"
        )
    differences = [value - other for value, other in zip(values, baseline)]
    mean, std = mean_std(differences)
    if mean is None:
        return Paired(0, None, reason="no seed in common with the baseline")
    if std is None:
        return Paired(1, mean, reason="one seed only, so no test")
    scale = max(abs(number) for number in [*values, *baseline])
    if std <= 1e-12 * max(scale, 1e-300):
        if abs(mean) <= 1e-12 * scale:
            return Paired(len(differences), 0.0, 0.0, 0.0, 1.0)
        return Paired(len(differences), mean, reason="the same difference for every seed, so the t-test is undefined")
    from scipy import stats

    error = std / math.sqrt(len(differences))
    half = _quantile(len(differences) - 1, confidence) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, len(differences) - 1))
    return Paired(len(differences), mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the i-th smallest of m p-values times m − i + 1, made monotone, at most 1.

    ``None`` stands for "not tested"; it stays ``None`` and does not count.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        corrected[index] = running
    return corrected


def _quantile(freedom: int, confidence: float) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, freedom))
