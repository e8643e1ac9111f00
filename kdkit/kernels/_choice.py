"""Which implementation a call runs on."""

from __future__ import annotations

from kdkit.kernels._chunked import chunked
from kdkit.kernels._problem import Problem, Solver
from kdkit.losses._checks import check_choice

__all__ = ["IMPLEMENTATIONS", "solver_of"]

IMPLEMENTATIONS = ("auto", "chunked")


def solver_of(name: str, implementation: str, problem: Problem) -> Solver:
    """The solver of this name, or the best one for the problem's device."""
    check_choice(name, "implementation", implementation, IMPLEMENTATIONS)
    return chunked
