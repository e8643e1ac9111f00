"""Small multiples of losses along a line of students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

VALUE, SLOPE, TEACHER, MUTED = "#0072B2", "#D55E00", "#999999", "#555555"
STYLE = {
    "svg.hashsalt": "kdkit",
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Curve:
    """One panel: a loss along a line of students.

    Attributes:
        title: of the panel; the recipe's name, and options that matter.
        loss: of the student's tensor.
        student: the student's tensor at a point ``x`` of the horizontal axis.
    """

    title: str
    loss: Callable[[Tensor], Tensor]
    student: Callable[[Tensor], Tensor]

    def values(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Value and derivative by ``x`` at each of the points."""
        found = []
        for point in points.to(torch.float64):
            x = point.clone().requires_grad_()
            value = self.loss(self.student(x)).sum()
            slope = torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros(())
            found.append((value.detach(), slope))
        values, slopes = zip(*found, strict=True)
        return torch.stack(values), torch.stack(slopes)


def panels(
    curves: Sequence[Curve],
    points: Tensor,
    label: str,
    *,
    columns: int = 4,
    limits: tuple[float, float] | None = None,
    mark: float | None = 0.0,
    ticks: tuple[Tensor, Sequence[str]] | None = None,
    slope_label: str = "gradient",
) -> Figure:
    """Small multiples: the value of each loss (solid) and its slope (dashed) over ``points``.

    Args:
        curves: one panel each.
        points: of the horizontal axis.
        label: of the horizontal axis.
        columns: panels side by side.
        limits: of the vertical axis, shared by all panels; without them each panel has its own.
        mark: where the teacher stands.
        ticks: places and words of the horizontal axis.
        slope_label: for the legend.
    """
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.35 * columns, 1.75 * rows + 0.6),
        sharex=True,
        sharey=limits is not None,
        squeeze=False,
    )
    for axis, curve in zip(axes.flat, curves, strict=False):
        _panel(axis, curve, points, mark)
        if limits:
            axis.set_ylim(*limits)
        if ticks:
            axis.set_xticks(ticks[0].tolist(), ticks[1])
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for place in range(len(curves)):
        if place + columns >= len(curves):
            axes.flat[place].set_xlabel(label)
            axes.flat[place].tick_params(labelbottom=True)
    words = ["value", slope_label, "teacher"][: 2 + (mark is not None)]
    handles = axes.flat[0].get_lines()[: len(words)]
    figure.legend(handles, words, loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()), h_pad=0.8, w_pad=0.8)
    return figure


def _panel(axis: Axes, curve: Curve, points: Tensor, mark: float | None) -> None:
    values, slopes = curve.values(points)
    axis.plot(points, values, color=VALUE, zorder=3)
    axis.plot(points, slopes, color=SLOPE, linestyle=(0, (4, 1.5)), linewidth=1.4, zorder=2)
    if mark is not None:
        axis.axvline(mark, color=TEACHER, linewidth=0.9, linestyle=":", zorder=1)
    axis.axhline(0, color=TEACHER, linewidth=0.6, zorder=0)
    axis.set_title(curve.title)
