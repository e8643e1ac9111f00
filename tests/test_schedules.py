"""Schedules of weights and temperatures."""

from __future__ import annotations

import pytest

from kdkit.errors import InputError
from kdkit.schedules import Constant, Cosine, Linear, Step, Warmup, as_schedule


def test_values() -> None:
    assert Constant(2)(0.7) == 2.0
    assert [Linear(1, 3, begin=0.2, end=0.6)(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([1, 1, 2, 3, 3])
    assert [Warmup(4, share=0.5)(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 2, 4, 4])
    assert [Cosine(2, 0)(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([2, 1, 0])
    assert [Step([3, 2, 1], [0.5, 0.8])(p) for p in (0.0, 0.49, 0.5, 0.8, 1.0)] == [3, 3, 2, 1, 1]
    assert as_schedule(3)(0.5) == 3.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(float("nan")), "Constant: value must be a finite number, got nan"),
        (lambda: Linear(0, 1, begin=0.5, end=0.5), "begin and end must satisfy 0 <= begin < end <= 1"),
        (lambda: Warmup(1, share=0.0), "got begin=0.0, end=0.0"),
        (lambda: Step([1], [0.5]), "values must have one entry more than milestones, got 1 and 1"),
        (lambda: Step([1, 2, 3], [0.5, 0.4]), r"milestones must rise inside \(0, 1\), got \[0.5, 0.4\]"),
        (lambda: as_schedule("1"), "a weight must be a number or a schedule of kdkit.schedules, got '1'"),
        (lambda: as_schedule(True), "a weight must be a number"),
    ],
)
def test_bad_values_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
