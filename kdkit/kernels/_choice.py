"""Which implementation a call runs on."""

from __future__ import annotations

import functools
import importlib.util
import os

from kdkit.kernels._chunked import chunked
from kdkit.kernels._forms import KINDS
from kdkit.kernels._gathered import gathered
from kdkit.kernels._problem import Known, Problem, Solver
from kdkit.kernels._whole_tiles import compiled, in_triton
from kdkit.losses._checks import check_choice, refuse

__all__ = ["IMPLEMENTATIONS", "solver_of", "triton_may_run"]

IMPLEMENTATIONS = ("auto", "chunked", "compiled", "triton")


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def triton_may_run(device_type: str) -> bool:
    """On CUDA where Triton is installed, and anywhere in its interpreter (``TRITON_INTERPRET=1``)."""
    return _installed() and (device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")


def solver_of(name: str, implementation: str, problem: Problem) -> Solver:
    """The solver of this name, or the best one for the problem and its device."""
    check_choice(name, "implementation", implementation, IMPLEMENTATIONS)
    if isinstance(problem.teacher, Known):
        if implementation in ("compiled", "triton"):
            refuse(name, "implementation", "'auto' or 'chunked'", implementation, "k entries have no other")
        return gathered if problem.teacher.alone and not problem.weights[1] else chunked
    assert problem.divergence is not None
    device = problem.student.hidden.device.type
    known = problem.divergence.name in KINDS and problem.weights[0] > 0
    if implementation in ("compiled", "triton") and not known:
        refuse(name, "implementation", "'auto' or 'chunked'", implementation, f"others know {', '.join(KINDS)} only")
    if implementation == "triton" and not triton_may_run(device):
        way_out = "use 'auto', or set TRITON_INTERPRET=1 before the first use to try it out on a CPU"
        refuse(name, "implementation", f"one that runs on {device}", implementation, way_out)
    if implementation == "compiled":
        return compiled
    if implementation == "triton" or (implementation == "auto" and known and device == "cuda" and _installed()):
        return in_triton
    return chunked
