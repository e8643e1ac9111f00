"""Drawings of one pair of a table: every method with its interval beside the published value, cost, calibration."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.tables._summary import Line
from kdkit.report._format import Metric, seconds_text
from kdkit.report._page import Picture
from kdkit.report.plots import INK, canvas, finish

__all__ = ["pictures"]

_OURS, _PUBLISHED, _NEUTRAL = "#0072b2", "#d55e00", "#8a949e"


def pictures(slug: str, lines: Sequence[Line], of: Metric) -> list[Picture]:
    """What there is to draw of a pair; ``slug`` goes into file names, ``of`` is the metric."""
    lines = [line for line in lines if line.mean is not None]
    if len(lines) < 2:
        return []
    drawn = [_dots(slug, lines, of)]
    students = [line for line in lines if line.method != "teacher"]
    timed = [line for line in students if line.seconds is not None]
    if len(timed) > 1:
        drawn.append(_scatter(f"{slug}-cost", f"{of.label.capitalize()} and cost", timed, "seconds", of))
    calibrated = [line for line in lines if line.ece is not None]
    if len(calibrated) > 1:
        drawn.append(_scatter(f"{slug}-calibration", f"{of.label.capitalize()} and calibration", calibrated, "ece", of))
    return drawn


def _axis(of: Metric) -> str:
    return f"{of.label} (%)" if of.share else of.label


def _dots(slug: str, lines: Sequence[Line], of: Metric) -> Picture:
    with canvas(6.2, 1.0 + 0.42 * max(len(lines), 3)) as (figure, axes):
        for place, line in enumerate(lines):
            values = list(line.values.values())
            axes.scatter(values, [place - 0.16] * len(values), s=20, color=_OURS, alpha=0.5, lw=0, zorder=3)
            if line.low is not None and line.high is not None:
                axes.plot([line.low, line.high], [place + 0.16] * 2, color=_OURS, lw=2.4, zorder=3)
            axes.plot(line.mean or 0.0, place + 0.16, "o", ms=6.5, color=_OURS, mec="white", mew=1, zorder=4)
            if line.published is not None:
                axes.plot(line.published, place, "D", ms=5.5, color=_PUBLISHED, mec="white", mew=0.8, zorder=5)
        axes.set_yticks(range(len(lines)), [line.title for line in lines])
        for tick in axes.get_yticklabels():
            tick.set(color=INK)
        axes.set_ylim(len(lines) - 0.45, -0.55)
        axes.margins(x=0.05)
        axes.set_xlabel(_axis(of))
        published = any(line.published is not None for line in lines)
        caption = "Pale dots are seeds after the last epoch, below them the mean with its 95 % interval" + (
            "; diamonds are the published values." if published else "."
        )
        return finish(figure, f"{slug}-values", "Every method", caption)


def _scatter(name: str, title: str, lines: Sequence[Line], against: str, of: Metric) -> Picture:
    with canvas(6.2, 4.2) as (figure, axes):
        for line in lines:
            x = (line.seconds or 0.0) if against == "seconds" else 100 * (line.ece or 0.0)
            color = INK if line.method in ("student", "teacher") else _OURS
            axes.errorbar(
                x, line.mean or 0.0, yerr=line.std or 0.0, fmt="o", ms=6, color=color, elinewidth=0.8, mec="white"
            )
            axes.annotate(
                line.title.removeprefix("student: ").removeprefix("teacher: "),
                (x, line.mean or 0.0),
                (6, 4),
                textcoords="offset points",
                fontsize=9,
                color=color,
            )
        axes.margins(0.12)
        axes.set_ylabel(_axis(of))
        best = "Bottom left is best" if of.higher_is_better is False else "Top left is best"
        if against == "seconds":
            axes.set_xlabel("time of one training (s)")
            longest = max(line.seconds or 0.0 for line in lines)
            caption = f"{best}; the longest training took {seconds_text(longest)}. Bars are standard deviations."
        else:
            axes.set_xlabel("ECE (%)")
            caption = f"{best}: right, and as sure as it is right. Bars are standard deviations."
        return finish(figure, name, title, caption)
