"""Pictures of runs and comparisons."""

from __future__ import annotations

import itertools

import matplotlib
import pytest

from kdkit.report import compare_plots, plots
from kdkit.report._format import metric
from kdkit.report.leaderboard import summarize


def is_whole(picture: plots.Picture | None) -> bool:
    return picture is not None and picture.png.startswith(b"\x89PNG") and picture.svg.rstrip().endswith(b"</svg>")


def test_nothing_to_draw_gives_no_picture() -> None:
    assert plots.curves({}, metric("accuracy")) is None
    assert plots.curves({"student": []}, metric("accuracy")) is None
    assert plots.loss_terms({}) is None
    assert plots.reliability({"student": {"confidence": [0.5], "accuracy": [None], "count": [0]}}) is None
    assert compare_plots.seeds([]) is None
    assert compare_plots.differences([]) is None
    assert compare_plots.calibration([]) is None
    assert compare_plots.times([]) is None


def test_pictures_are_drawn_without_global_state() -> None:
    before = dict(matplotlib.rcParams)
    points = [(step, 0.5 + step / 2000) for step in range(0, 900, 5)]
    assert is_whole(plots.curves({"student alone": points, "x": [(10, 0.5)]}, metric("accuracy"), {"teacher": 0.98}))
    assert is_whole(plots.curves({"student": [(1, 9000.0), (2, 20.0)]}, metric("perplexity"), wide=True))
    assert is_whole(plots.loss_terms({"total": points, "kd": [(step, 0.001) for step, _ in points]}))
    assert dict(matplotlib.rcParams) == before


def test_the_same_input_gives_the_same_picture() -> None:
    first, second = (plots.curves({"student": [(1, 0.5), (2, 0.6)]}, metric("accuracy")) for _ in range(2))
    assert first is not None and second is not None
    assert first.svg == second.svg


def test_text_uses_the_font_of_the_page() -> None:
    picture = plots.curves({"student": [(1, 0.5)]}, metric("accuracy"))
    assert picture is not None
    assert b"system-ui" in picture.svg and b"DejaVu" not in picture.svg
    assert picture.source.startswith("data:image/svg+xml;base64,")


def test_labels_keep_their_distance_and_order() -> None:
    spread = plots._spread([10.0, 11.0, 50.0, 12.0], 8.0)
    assert spread[2] == 50.0
    assert sorted(range(4), key=lambda i: spread[i]) == [0, 1, 3, 2]
    ordered = sorted(spread)
    assert all(b - a >= 8.0 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert sum(spread[i] for i in (0, 1, 3)) == pytest.approx(33.0)


def test_roles_keep_their_colours() -> None:
    assert plots.color_of("student alone") != plots.color_of("student distilled") != plots.color_of("teacher")
    assert plots.color_of("else", 9) == plots.PALETTE[1]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("ece", [None, 0.02])
def test_comparison_pictures(seeds: int, ece: float | None) -> None:
    results = [
        {"method": name, "seed": seed, "metrics": {"accuracy": value + 0.003 * seed * seed, "ece": ece}, "seconds": 3.0}
        for name, value in (("ce", 0.9), ("kd", 0.93), ("a method with a long name", 0.9301))
        for seed in range(seeds)
    ]
    rows = summarize(results, "ce", "accuracy", True)
    assert is_whole(compare_plots.seeds(rows, 0.98))
    assert is_whole(compare_plots.differences(rows))
    assert is_whole(compare_plots.times(rows))
    assert is_whole(compare_plots.calibration(rows, (0.98, 0.01))) == (ece is not None)
