"""Drawings of one pair of a table: every method with its interval beside the published value, cost, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tables._summary import Line
from kdkit.report._format import Metric, seconds_text
from kdkit.report._page import Picture
from kdkit.report.plots import INK, canvas, finish

__all__ = ["pictures"]

_OURS, _PUBLISHED = "#0072b2", "#d55e00"
_PLACES = ((6, 4), (6, -11), (-6, 4), (-6, -11))
"""Of a name beside its point, in points."""
_MANY = 20
"""Rows from which on they are drawn densely and in order of their means."""


def pictures(slug: str, lines: Sequence[Line], of: Metric) -> list[Picture]:
    """What there is to draw of a pair; ``slug`` goes into file names, ``of`` is the metric."""
    lines = [line for line in lines if line.mean is not None]
    if len(lines) < 2:
        return []
    drawn = [_dots(slug, lines, of)]
    students = [line for line in lines if line.method != "teacher"]
    timed = [line for line in students if line.seconds is not None]
    if len(timed) > 1:
        drawn.append(_scatter(f"{slug}-cost", f"{_title(of)} and cost", timed, "seconds", of))
    calibrated = [line for line in lines if line.ece is not None]
    if len(calibrated) > 1:
        drawn.append(_scatter(f"{slug}-calibration", f"{_title(of)} and calibration", calibrated, "ece", of))
    return drawn


def _title(of: Metric) -> str:
    return of.label[:1].upper() + of.label[1:]


def _axis(of: Metric) -> str:
    return f"{of.label} (%)" if of.share else of.label


def _mean(line: Line) -> float:
    return line.mean or 0.0


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """A range in which the bulk can be told apart: three interquartile ranges beyond the quartiles at most."""
    ordered = sorted(values)
    first, third = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.75))
    reach = 3 * (third - first)
    low, high = max(ordered[0], first - reach), min(ordered[-1], third + reach)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _dots(slug: str, lines: Sequence[Line], of: Metric) -> Picture:
    many = len(lines) > _MANY
    if many:
        lines = sorted(lines, key=_mean, reverse=of.higher_is_better is not False)
    shift = 0.0 if many else 0.16
    with canvas(6.2, 1.0 + (0.24 if many else 0.42) * max(len(lines), 3)) as (figure, axes):
        for place, line in enumerate(lines):
            values = list(line.values.values())
            axes.scatter(values, [place - shift] * len(values), s=20, color=_OURS, alpha=0.35, lw=0, zorder=3)
            if line.low is not None and line.high is not None:
                axes.plot([line.low, line.high], [place + shift] * 2, color=_OURS, lw=2.4, zorder=3)
            axes.plot(_mean(line), place + shift, "o", ms=6.5, color=_OURS, mec="white", mew=1, zorder=4)
            if line.published is not None:
                axes.plot(line.published, place, "D", ms=5.5, color=_PUBLISHED, mec="white", mew=0.8, zorder=5)
        axes.set_yticks(range(len(lines)), [line.title for line in lines])
        for tick in axes.get_yticklabels():
            tick.set(color=INK)
        axes.set_ylim(len(lines) - 0.45, -0.55)
        axes.margins(x=0.05)
        outside = _cut(axes, lines) if many else ""
        axes.set_xlabel(_axis(of))
        published = any(line.published is not None for line in lines)
        where = "around the mean" if many else "below them the mean"
        caption = f"Pale dots are seeds after the last epoch, {where} with its 95 % interval" + (
            "; diamonds are the published values." if published else "."
        )
        return finish(figure, f"{slug}-values", "Every method", caption + outside)


def _cut(axes: Any, lines: Sequence[Line]) -> str:
    """Leave out what is far from the rest, and say so where it would be."""
    low, high = _limits([value for line in lines for value in line.values.values()])
    axes.set_xlim(low, high)
    far = [(place, line) for place, line in enumerate(lines) if not low <= _mean(line) <= high]
    for place, line in far:
        left = _mean(line) < low
        text = f"◂ {_mean(line):.1f}" if left else f"{_mean(line):.1f} ▸"
        x = low + 0.01 * (high - low) if left else high - 0.01 * (high - low)
        axes.text(x, place, text, va="center", ha="left" if left else "right", fontsize=8, color=_OURS)
    return " Arrows stand for means that are far outside." if far else ""


def _scatter(name: str, title: str, lines: Sequence[Line], against: str, of: Metric) -> Picture:
    with canvas(6.2, 4.2) as (figure, axes):
        points = [((line.seconds or 0.0) if against == "seconds" else 100 * (line.ece or 0.0)) for line in lines]
        for line, x in zip(lines, points, strict=True):
            axes.errorbar(
                x, _mean(line), yerr=line.std or 0.0, fmt="o", ms=6, color=_color(line), elinewidth=0.8, mec="white"
            )
        axes.margins(0.12)
        left_out = 0
        if len(lines) > _MANY:
            ranges = _limits(points), _limits([_mean(line) for line in lines])
            axes.set_xlim(*ranges[0])
            axes.set_ylim(*ranges[1])
            inside = [
                all(low <= value <= high for value, (low, high) in zip((x, _mean(line)), ranges, strict=True))
                for line, x in zip(lines, points, strict=True)
            ]
            left_out = inside.count(False)
            kept = [(line, x) for line, x, shown in zip(lines, points, inside, strict=True) if shown]
            lines, points = [line for line, _ in kept], [x for _, x in kept]
        axes.set_ylabel(_axis(of))
        axes.set_xlabel("time of one training (s)" if against == "seconds" else "ECE (%)")
        best = "Bottom left is best" if of.higher_is_better is False else "Top left is best"
        why = "" if against == "seconds" else ": right, and as sure as it is right"
        caption = f"{best}{why}. Bars are standard deviations."
        if against == "seconds":
            longest = max(line.seconds or 0.0 for line in lines)
            caption += f" The longest training took {seconds_text(longest)}."
        named = _name_points(figure, axes, lines, points, of)
        caption += "" if named == len(lines) else " Names are there where there is room for them."
        caption += f" {left_out} rows far outside are left out." if left_out else ""
        return finish(figure, name, title, caption)


def _color(line: Line) -> str:
    return INK if line.method in ("student", "teacher") else _OURS


def _name_points(figure: Any, axes: Any, lines: Sequence[Line], points: Sequence[float], of: Metric) -> int:
    """Names beside the points, the student, the teacher and the best first, none over another; how many there are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    order = sorted(
        zip(lines, points, strict=True), key=lambda each: _mean(each[0]), reverse=of.higher_is_better is not False
    )
    order.sort(key=lambda each: each[0].method not in ("student", "teacher"))
    agg = FigureCanvasAgg(figure)
    agg.draw()  # limits and layout are settled when drawn
    renderer = agg.get_renderer()
    taken: list[Any] = []
    for line, x in order:
        name = line.title.removeprefix("student: ").removeprefix("teacher: ")
        for place in _PLACES:
            side = "left" if place[0] > 0 else "right"
            text = axes.annotate(
                name, (x, _mean(line)), place, textcoords="offset points", fontsize=9, color=_color(line), ha=side
            )
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
    return len(taken)
