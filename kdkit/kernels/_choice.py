"""Which implementation a call runs on."""

from __future__ import annotations

from kdkit.kernels._chunked import chunked
from kdkit.kernels._gathered import gathered
from kdkit.kernels._problem import Known, Problem, Solver
from kdkit.losses._checks import check_choice

__all__ = ["IMPLEMENTATIONS", "solver_of"]

IMPLEMENTATIONS = ("auto", "chunked")


def solver_of(name: str, implementation: str, problem: Problem) -> Solver:
    """The solver of this name, or the best one for the problem and its device."""
    check_choice(name, "implementation", implementation, IMPLEMENTATIONS)
    if isinstance(problem.teacher, Known) and problem.teacher.alone and not problem.weights[1]:
        return gathered
    return chunked
