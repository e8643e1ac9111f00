"""Rows of a tile in one go: by a compiled function, or by a Triton kernel."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kdkit.kernels._chunked import Tiles
from kdkit.kernels._forms import terms
from kdkit.kernels._problem import Network, Problem, Solved

__all__ = ["compiled", "in_triton"]


class _WholeTile:
    """The interface of :class:`~kdkit.kernels._rows.RowsOfTile`, for all rows of a tile at once."""

    def __init__(self, problem: Problem, dtype: torch.dtype, learning: bool) -> None:
        self.problem, self.dtype, self.learning = problem, dtype, learning

    @classmethod
    @contextlib.contextmanager
    def of(cls, problem: Problem, dtype: torch.dtype, learning: bool, high: int) -> Iterator[_WholeTile]:
        """Needs no scratch."""
        yield cls(problem, dtype, learning)

    def __call__(self, student: Tensor, teacher: Tensor, first: int, weights: float | Tensor, values: Tensor) -> None:
        problem, rows = self.problem, slice(first, first + len(student))
        labels = None
        if problem.weights[1]:
            assert problem.labels is not None
            labels = problem.labels.index_select(0, problem.kept[rows])
        if not isinstance(weights, Tensor):
            weights = torch.full((len(student),), weights, dtype=self.dtype, device=student.device)
        self.run(student, teacher, labels, weights.to(self.dtype), values[0, rows], values[1, rows])

    def options(self) -> dict[str, Any]:
        """What the implementations take besides tensors."""
        student, teacher, divergence = self.problem.student, self.problem.teacher, self.problem.divergence
        assert isinstance(teacher, Network) and divergence is not None
        return {
            "name": divergence.name,
            "parameter": divergence.parameter or 0.0,
            "temperatures": (student.temperature, teacher.temperature),
            "caps": (student.softcap, teacher.softcap),
            "shares": self.problem.weights,
            "learning": self.learning,
        }

    def run(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, weights: Tensor, values: Tensor, ce: Tensor
    ) -> None:
        """Fill ``values`` and ``ce``, and put the gradient in place of ``student``."""
        raise NotImplementedError(f"{type(self).__name__} must define run")


class _Triton(_WholeTile):
    def run(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, weights: Tensor, values: Tensor, ce: Tensor
    ) -> None:
        from kdkit.kernels._triton_rows import launch

        launch(student, teacher, student, weights, values, labels=labels, ce_values=ce, **self.options())


class _Compiled(_WholeTile):
    def run(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None, weights: Tensor, values: Tensor, ce: Tensor
    ) -> None:
        value, cross_entropy = _compiled_rows()(student, teacher, labels, weights, **self.options())
        values.copy_(value)
        if cross_entropy is not None:
            ce.copy_(cross_entropy)


@functools.cache
def _compiled_rows() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_plain_rows, dynamic=True)


def _plain_rows(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    weights: Tensor,
    *,
    name: str,
    parameter: float,
    temperatures: tuple[float, float],
    caps: tuple[float | None, float | None],
    shares: tuple[float, float],
    learning: bool,
) -> tuple[Tensor, Tensor | None]:
    """The closed forms in plain torch, for a compiler to fuse; the gradient goes into ``student``."""
    own = student if caps[0] is None else caps[0] * torch.tanh(student / caps[0])
    other = teacher if caps[1] is None else caps[1] * torch.tanh(teacher / caps[1])
    log_q = torch.log_softmax(own / temperatures[0], dim=-1)
    log_p = torch.log_softmax(other / temperatures[1], dim=-1)
    value, slope = terms(name, parameter, log_p, log_q)
    cross_entropy = None
    gradient = (slope - log_q.exp() * slope.sum(dim=-1, keepdim=True)) * (shares[0] / temperatures[0])
    if labels is not None:
        log_law = torch.log_softmax(own, dim=-1)
        cross_entropy = -log_law.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        hit = torch.arange(own.shape[1], device=own.device) == labels.unsqueeze(-1)
        gradient = gradient + shares[1] * (log_law.exp() - hit.to(own.dtype))
    values = value.sum(dim=-1)
    if learning:
        if caps[0] is not None:
            gradient = gradient * (1 - (own / caps[0]).square())
        student.copy_(gradient * weights.unsqueeze(-1))
    return values, cross_entropy


def _by(rows: type[_WholeTile]) -> Callable[..., Solved]:
    def solver(problem: Problem, needed: tuple[bool, bool, bool], row_weights: float | Tensor) -> Solved:
        with torch.no_grad():
            return Tiles(problem, needed, row_weights, rows.of).run()

    return solver


in_triton = _by(_Triton)
compiled = _by(_Compiled)
