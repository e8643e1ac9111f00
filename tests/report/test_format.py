"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from kdkit.report import _format as f


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.9643, "96.4 %"),
        ("accuracy", math.nan, "–"),
        ("accuracy", None, "–"),
        ("perplexity", 16.037, "16.04"),
        ("perplexity", 31234.5, "31,234"),
        ("perplexity", 2.5e7, "2.5e+07"),
        ("nll", 0.12345, "0.123"),
        ("something_new", -0.5, "−0.500"),
    ],
)
def test_values(name: str, value: float | None, text: str) -> None:
    assert f.value_text(f.metric(name), value) == text


def test_spreads_and_differences() -> None:
    accuracy, perplexity = f.metric("accuracy"), f.metric("perplexity")
    assert f.spread_text(accuracy, 0.9643, 0.0031) == "96.4 ± 0.3 %"
    assert f.spread_text(accuracy, 0.9643, 0.0031, 2) == "96.43 ± 0.31 %"
    assert f.spread_text(accuracy, 0.9643, None) == "96.4 %"
    assert f.spread_text(perplexity, 16.0, 0.5) == "16.00 ± 0.50"
    assert f.difference_text(accuracy, 0.023) == "+2.3 points"
    assert f.difference_text(accuracy, -0.0001) == "±0.0 points"
    assert f.difference_text(perplexity, -1.784) == "−1.78"
    assert f.interval_text(accuracy, -0.01, 0.03) == "−1.0 to +3.0"
    assert f.interval_text(accuracy, None, 0.03) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (12345, "12.3 k"), (999_999, "1.00 M"), (1.6e12, "1.60 T"), (None, "–")],
)
def test_counts(value: float | None, text: str) -> None:
    assert f.count_text(value) == text


def test_bytes_times_and_probabilities() -> None:
    assert [f.bytes_text(v) for v in (0, 512, 51_580, 18_048_000)] == ["0 B", "512 B", "51.6 kB", "18.0 MB"]
    assert [f.milliseconds_text(v) for v in (0.2309, 3.42, 1530)] == ["231 µs", "3.42 ms", "1.53 s"]
    assert [f.seconds_text(v) for v in (12.34, 59.97, 125, 3599.8, 12000)] == [
        "12.3 s", "1 min 00 s", "2 min 05 s", "1 h 00 min", "3 h 20 min",
    ]  # fmt: skip
    assert [f.p_text(v) for v in (0.0001, 0.0123, 0.5, None)] == ["<0.001", "0.012", "0.50", "–"]
    assert (f.p_phrase(0.0001), f.p_phrase(0.02)) == ("p < 0.001", "p = 0.020")


def test_words_and_settings() -> None:
    assert [f.join(w) for w in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert f.flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_digits_follow_the_size_of_the_test_set() -> None:
    assert [f.share_digits(n) for n in (None, 500, 10_000)] == [1, 1, 2]


def test_direction_can_be_given() -> None:
    assert f.metric("accuracy").higher_is_better is True
    assert f.metric("score", False).higher_is_better is False
    assert f.metric("accuracy", False).share is True
