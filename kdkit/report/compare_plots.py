"""Drawings of a comparison: every seed, every difference, calibration and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdkit.report._format import difference_text, metric, seconds_text
from kdkit.report._page import Picture
from kdkit.report.leaderboard import Row, table_digits
from kdkit.report.plots import INK, canvas, finish, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration", "differences", "seeds", "times"]

_TEACHER = "#5b6670"
_TONES = {"helps": "#0072b2", "hurts": "#d55e00", "baseline": INK}
_NEUTRAL = "#8a949e"


def seeds(rows: Sequence[Row], teacher: float | None = None) -> Picture | None:
    """Every seed a dot, with the mean and its 95 % interval; the baseline's mean as a line through all methods."""
    rows = [row for row in rows if row.n]
    if not rows:
        return None
    of, factor = metric(rows[0].metric, rows[0].higher_is_better), _factor(rows[0])
    with canvas(6.2, _height(len(rows))) as (figure, axes):
        for place, row in enumerate(rows):
            tone = _tone(row)
            values = [factor * value for value in row.values.values()]
            axes.scatter(values, [place - 0.16] * len(values), s=20, color=tone, alpha=0.55, lw=0, zorder=3)
            mean = factor * (row.mean or 0.0)
            if row.low is not None and row.high is not None:
                axes.plot([factor * row.low, factor * row.high], [place + 0.16] * 2, color=tone, lw=2.4, zorder=3)
            axes.plot(mean, place + 0.16, "o", ms=6.5, color=tone, mec="white", mew=1, zorder=4)
            if row.is_baseline:
                axes.axvline(mean, color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        if teacher is not None:
            axes.axvline(factor * teacher, color=_TEACHER, lw=1.2, ls=(0, (1, 2)), zorder=1)
            above = axes.get_xaxis_transform()
            axes.text(factor * teacher, 1.01, "teacher", transform=above, ha="center", color=_TEACHER, fontsize=9)
        _methods(axes, rows)
        axes.set_xlabel(of.label + (" (%)" if of.share else ""))
        direction = "right is better" if of.higher_is_better else "left is better"
        caption = (
            f"{_capital(of.label)} on the test split, {direction}: pale dots are seeds, below them the mean with its "
            "95 % interval. The dashed line is the baseline's mean."
        )
        return finish(figure, "seeds", "Every seed", caption)


def differences(rows: Sequence[Row], *, name: str = "differences") -> Picture | None:
    """Mean difference to the baseline with its 95 % interval, paired by seed."""
    rows = [row for row in rows if row.difference is not None]
    if not rows:
        return None
    of, factor, digits = metric(rows[0].metric, rows[0].higher_is_better), _factor(rows[0]), table_digits(rows)
    with canvas(6.2, _height(len(rows))) as (figure, axes):
        axes.axvline(0, color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        for place, row in enumerate(rows):
            tone, difference = _tone(row), factor * (row.difference or 0.0)
            if row.difference_low is not None and row.difference_high is not None:
                ends = [factor * row.difference_low, factor * row.difference_high]
                axes.plot(ends, [place] * 2, color=tone, lw=2.4, zorder=3)
            axes.plot(difference, place, "o", ms=6.5, color=tone, mec="white", mew=1, zorder=4)
            axes.annotate(
                difference_text(of, row.difference, digits, unit=False),
                (1, place),
                (6, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                color=tone,
                fontsize=9.5,
                fontweight="bold" if row.verdict in ("helps", "hurts") else "normal",
            )
        _methods(axes, rows)
        axes.set_xlabel("difference to the baseline" + (", in points" if of.share else f" in {of.label}"))
        better = "right" if of.higher_is_better else "left"
        caption = (
            f"Mean difference over the seeds with its 95 % interval, {better} is better. Blue helps and orange hurts "
            "after correction for the number of methods; grey is not told apart from no effect."
        )
        return finish(figure, name, "Difference to the baseline", caption)


def calibration(rows: Sequence[Row], teacher: tuple[float, float] | None = None) -> Picture | None:
    """The primary metric against the expected calibration error, one dot per method with its standard deviations.

    Args:
        teacher: ``(primary, ece)`` of the teacher.
    """
    rows = [row for row in rows if row.n and row.ece is not None]
    if not rows:
        return None
    of, factor = metric(rows[0].metric, rows[0].higher_is_better), _factor(rows[0])
    with canvas(6.2, 4.2) as (figure, axes):
        points = []
        for row in rows:
            x, y = 100 * (row.ece or 0.0), factor * (row.mean or 0.0)
            spread: dict[str, Any] = {"xerr": 100 * (row.ece_std or 0), "yerr": factor * (row.std or 0)}
            axes.errorbar(x, y, **spread, fmt="o", ms=6, color=_tone(row), elinewidth=0.8, alpha=0.9, mec="white")
            points.append((x, y, row.method, _tone(row)))
        if teacher is not None:
            x, y = 100 * teacher[1], factor * teacher[0]
            axes.plot(x, y, "D", ms=6, color=_TEACHER, mec="white")
            points.append((x, y, "teacher", _TEACHER))
        axes.margins(0.08)
        axes.set_xlabel("ECE (%)")
        axes.set_ylabel(of.label + (" (%)" if of.share else ""))
        _label_points(axes, points)
        corner = "top left" if of.higher_is_better else "bottom left"
        caption = f"Means over the seeds, bars are standard deviations; {corner} is best on both counts."
        return finish(figure, "calibration", f"{_capital(of.label)} and calibration", caption)


def times(rows: Sequence[Row]) -> Picture | None:
    """Mean time of one training per method."""
    rows = [row for row in rows if row.seconds is not None]
    if not rows:
        return None
    with canvas(6.2, _height(len(rows))) as (figure, axes):
        for place, row in enumerate(rows):
            axes.barh(place, row.seconds or 0.0, height=0.55, color="#c4ccd4" if not row.is_baseline else "#8a949e")
            axes.annotate(
                seconds_text(row.seconds), (row.seconds or 0.0, place), (5, 0), textcoords="offset points", va="center"
            )
        _methods(axes, rows)
        axes.grid(False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds")
        return finish(
            figure, "time", "Time", "Mean time of one run of a method on this machine, dark for the baseline."
        )


def _methods(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows):
        label.set(color=INK, fontweight="bold" if row.is_baseline else "normal")
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=0.04)


def _label_points(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside their points, each at the first place around it where it touches no name and no point so far."""
    settle(axes)
    from matplotlib.transforms import Bbox

    centres = axes.transData.transform([(x, y) for x, y, _, _ in points])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centres]
    places = [
        (right * reach, up * reach, {1: "left", -1: "right", 0: "center"}[right])
        for reach in (7, 14, 22)
        for right, up in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1.6), (0, -1.6), (1, 0), (-1, 0))
    ]
    for x, y, name, color in points:
        best = None
        for right, up, align in places:
            text = axes.annotate(
                name, (x, y), (right, up), textcoords="offset points", ha=align, va="center", color=color, fontsize=9.5
            )
            box = text.get_window_extent()
            clashes = sum(box.overlaps(other) for other in taken) + 2 * (box.x1 > axes.bbox.x1)
            if best is None or clashes < best[0]:
                if best is not None:
                    best[1].remove()
                best = (clashes, text, box)
            else:
                text.remove()
            if best[0] == 0:
                break
        if best is not None:
            taken.append(best[2])


def _factor(row: Row) -> int:
    return 100 if metric(row.metric).share else 1


def _tone(row: Row) -> str:
    return _TONES.get(row.verdict, _NEUTRAL)


def _height(count: int) -> float:
    return 1.0 + 0.42 * max(count, 3)


def _capital(label: str) -> str:
    return label[0].upper() + label[1:]
