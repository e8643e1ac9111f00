"""Drawings of one run or several: learning curves, loss terms, calibration. No global drawing state is touched."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdkit.report._format import Metric, finite
from kdkit.report._page import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "INK",
    "MUTED",
    "PALETTE",
    "Curve",
    "canvas",
    "color_of",
    "curves",
    "finish",
    "label_lines",
    "loss_terms",
    "reliability",
    "settle",
]

INK, MUTED, GRID = "#1c2733", "#66727f", "#e4e8ec"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c99", "#8c6d31")
"""Colours that people with colour blindness tell apart (after Okabe and Ito)."""

_ROLES = {"teacher": "#5b6670", "student alone": "#d55e00", "student distilled": "#0072b2", "student": "#0072b2"}
_FONT = b"system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans','Liberation Sans',Arial,sans-serif"

Curve = Sequence[tuple[float, float]]
"""Points ``(step, value)`` in order."""


def color_of(name: str, index: int = 0) -> str:
    """The fixed colour of a role, or the palette's next."""
    return _ROLES.get(name, PALETTE[index % len(PALETTE)])


@contextmanager
def canvas(width: float = 6.2, height: float = 3.7) -> Iterator[tuple[Figure, Axes]]:
    """A quiet figure with one pair of axes, in inches; styles hold inside the ``with`` block only."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": "#b5bec7",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "kdkit",
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        axes: Axes = figure.add_subplot()
        axes.margins(x=0.015)
        yield figure, axes


def finish(figure: Figure, name: str, title: str, caption: str, *, wide: bool = False) -> Picture:
    """Render a figure as SVG (in the page's own font) and PNG."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # settled: both files keep it
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(name, title, caption, svg.getvalue().replace(b"'DejaVu Sans'", _FONT), png.getvalue(), wide)


def curves(
    lines: Mapping[str, Curve],
    of: Metric,
    levels: Mapping[str, float] | None = None,
    *,
    name: str = "validation",
    wide: bool = False,
) -> Picture | None:
    """Validation metric over steps, one line per network, names at the line ends.

    Args:
        lines: label -> points.
        of: the metric that is drawn; a share is drawn in per cent.
        levels: label -> value, drawn as dashed horizontal lines.
        name: file name of the picture.
        wide: draw it for the whole width of the page.
    """
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return None
    factor = 100 if of.share else 1
    with canvas(*((10.6, 4.4) if wide else (6.2, 3.7))) as (figure, axes):
        ends = []
        for index, (label, points) in enumerate(lines.items()):
            x, y = [step for step, _ in points], [factor * value for _, value in points]
            color = color_of(label, index)
            axes.plot(x, y, color=color, lw=1.9, marker="o" if len(x) <= 25 else "", ms=3.2, solid_capstyle="round")
            ends.append((y[-1], label, color))
        for label, value in (levels or {}).items():
            axes.axhline(factor * value, color=color_of(label), lw=1.3, ls=(0, (5, 3)))
            ends.append((factor * value, label, color_of(label)))
        axes.set_xlabel("step")
        axes.set_ylabel(f"{of.label}, validation" + (" (%)" if of.share else ""))
        _log_if_wide(axes, [factor * value for points in lines.values() for _, value in points], of)
        label_lines(axes, ends)
        direction = {True: "higher is better", False: "lower is better", None: ""}[of.higher_is_better]
        caption = f"{of.label[0].upper()}{of.label[1:]} on the validation split during training"
        text = f"{caption}; {direction}." if direction else f"{caption}."
        return finish(figure, name, "Validation", text, wide=wide)


def loss_terms(terms: Mapping[str, Curve]) -> Picture | None:
    """Training loss and its weighted or plain terms over steps, names at the line ends; smoothed when dense."""
    terms = {label: points for label, points in terms.items() if points}
    if not terms:
        return None
    dense = max(len(points) for points in terms.values()) > 120
    with canvas() as (figure, axes):
        ends, shown = [], []
        for index, (label, points) in enumerate(terms.items()):
            x, y = [step for step, _ in points], [value for _, value in points]
            color = INK if label == "total" else PALETTE[index % len(PALETTE)]
            if dense:
                axes.plot(x, y, color=color, lw=0.6, alpha=0.25)
                y = _smooth(y)
            axes.plot(x, y, color=color, lw=1.9 if label == "total" else 1.5)
            ends.append((y[-1], label, color))
            shown += y
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        positive = [value for value in shown if value > 0]
        if len(positive) == len(shown) and max(positive) > 40 * min(positive):
            axes.set_yscale("log")
        label_lines(axes, ends)
        said = "The total and its terms, at the logged steps." if len(terms) > 1 else "The loss at the logged steps."
        tail = " Strong lines are running means." if dense else ""
        return finish(figure, "loss", "Training loss", said + tail)


def reliability(bins: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Picture | None:
    """Accuracy over confidence per network, with the share of samples per bin below.

    Args:
        bins: network -> ``confidence``, ``accuracy``, ``count``, one entry per bin.
    """
    drawn = {label: points for label, entry in bins.items() if (points := _bins(entry))}
    if not drawn:
        return None
    with canvas(5.2, 4.9) as (figure, axes):
        axes.remove()
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        top.plot([0, 100], [0, 100], color="#9aa5b0", lw=1.2, ls=(0, (4, 3)), zorder=1)
        for index, (label, points) in enumerate(drawn.items()):
            color = color_of(label, index)
            total = sum(count for _, _, count in points)
            x = [100 * confidence for confidence, _, _ in points]
            top.plot(x, [100 * accuracy for _, accuracy, _ in points], color=color, lw=1.3, alpha=0.75)
            sizes = [14 + 150 * count / total for _, _, count in points]
            top.scatter(x, [100 * accuracy for _, accuracy, _ in points], s=sizes, color=color, label=label, zorder=3)
            bottom.plot(x, [100 * count / total for _, _, count in points], color=color, lw=1.5, marker=".")
        top.set(xlim=(0, 102), ylim=(-3, 103), ylabel="accuracy (%)")
        bottom.set(ylim=(0, None), ylabel="samples (%)", xlabel="confidence (%)")
        legend = top.legend(loc="upper left", borderaxespad=0.2, handletextpad=0.4)
        for handle in legend.legend_handles:
            handle.set_sizes([45])
        caption = (
            "Confidence against accuracy on the test split. On the dashed line a network is as sure as it is right; "
            "below it, too sure. Larger dots hold more samples; the lower strip shows their share."
        )
        return finish(figure, "reliability", "Calibration", caption)


def label_lines(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names at the right edge, at the line ends ``(y, label, colour)``, moved apart where they would touch."""
    settle(axes)
    points = 72 / axes.figure.dpi
    low, high = axes.bbox.y0, axes.bbox.y1
    heights = [min(max(axes.transData.transform((0, y))[1], low), high) for y, _, _ in ends]
    spread = _spread(heights, 13 / points)
    lift = min(0.0, high - max(spread))
    for (y, label, color), before, after in zip(ends, heights, spread):
        axes.annotate(
            label,
            (1, y),
            (5, (after + lift - before) * points),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9.5,
            annotation_clip=False,
        )


def settle(axes: Axes) -> None:
    """Run the figure's layout, so that data coordinates map to their final places."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.draw_without_rendering()


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed so that neighbours are a gap apart."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members, centre = [index], heights[index]
        while groups:
            before, middle = groups[-1]
            if centre - middle >= gap * (len(members) + len(before)) / 2:
                break
            groups.pop()
            members = before + members
            centre = sum(heights[i] for i in members) / len(members)
        groups.append((members, centre))
    result = [0.0] * len(heights)
    for members, centre in groups:
        for rank, index in enumerate(members):
            result[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return result


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over about 3 % of the points."""
    half = max(1, len(values) // 60)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _bins(entry: Mapping[str, Sequence[Any]]) -> list[tuple[float, float, float]]:
    """Filled bins as ``(confidence, accuracy, count)``."""
    columns = (entry.get("confidence") or [], entry.get("accuracy") or [], entry.get("count") or [])
    points = [tuple(finite(value) for value in bin_) for bin_ in zip(*columns)]
    return [(a, b, c) for a, b, c in points if a is not None and b is not None and c]


def _log_if_wide(axes: Axes, values: Sequence[float], of: Metric) -> None:
    """Perplexity and its like fall by orders of magnitude at first: show them on a logarithmic axis."""
    if of.share or not values or min(values) <= 0 or max(values) < 8 * min(values):
        return
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
