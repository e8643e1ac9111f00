"""Where only some entries matter: their logits alone, from rows of the head that are looked up."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.kernels._chunked import arithmetic
from kdkit.kernels._problem import Gradients, Known, Problem, Solved
from kdkit.kernels._rows import cap

__all__ = ["gathered"]

_BUDGET = 2**22
"""Entries of the head that are looked up at a time."""


def gathered(problem: Problem, needed: tuple[bool, bool, bool], row_weights: float | Tensor) -> Solved:
    """The solver for :attr:`Known.alone` without cross-entropy; see :data:`~kdkit.kernels._problem.Solver`."""
    student, dtype = problem.student, arithmetic(problem)
    assert isinstance(problem.teacher, Known)
    like = {"dtype": dtype, "device": student.hidden.device}
    sources = (student.hidden, student.head, student.bias)
    wanted = zip(sources, needed, strict=True)
    gradients = Gradients(*(torch.zeros(s.shape, **like) if n and s is not None else None for s, n in wanted))  # type: ignore[call-overload]
    values = torch.zeros(2, len(problem.kept), **like)  # type: ignore[call-overload]
    width = problem.teacher.index.shape[1] * student.head.shape[1]
    step = problem.chunk or max(_BUDGET // max(width, 1), 1)
    with torch.no_grad():
        for start in range(0, len(problem.kept), step):
            rows = slice(start, min(start + step, len(problem.kept)))
            weights = row_weights if isinstance(row_weights, float) else row_weights[rows].unsqueeze(-1)
            _rows(problem, problem.teacher, rows, weights, values[0], gradients, any(needed))
    return Solved(values[0], values[1], gradients)


def _rows(
    problem: Problem,
    teacher: Known,
    rows: slice,
    weights: float | Tensor,
    values: Tensor,
    gradients: Gradients,
    learning: bool,
) -> None:
    """Values of these rows, and their part of the gradients."""
    student, kept, dtype = problem.student, problem.kept[rows], values.dtype
    index = teacher.index.index_select(0, kept)
    hidden = student.hidden.index_select(0, kept).to(dtype) * student.scale
    head = student.head.index_select(0, index.flatten()).view(*index.shape, -1).to(dtype)
    logits = torch.bmm(head, hidden.unsqueeze(-1)).squeeze(-1)
    if student.bias is not None:
        logits += student.scale * student.bias.to(dtype)[index]
    chain = cap(logits, student.softcap, None if student.softcap is None else torch.empty_like(logits))
    with torch.set_grad_enabled(learning):
        soft = (logits / student.temperature).requires_grad_(learning)
        known = teacher.values.index_select(0, kept).to(dtype)
        own = teacher.entries(known, soft, torch.full_like(soft[:, :1], -torch.inf))
        total = own.sum()
    values[rows] = own.detach()
    if not learning:
        return
    slope = torch.autograd.grad(total, soft)[0].mul_(1 / student.temperature).mul_(weights).mul_(problem.weights[0])
    if chain is not None:
        slope.mul_(chain)
    if gradients.hidden is not None:
        gradients.hidden.index_copy_(0, kept, torch.bmm(slope.unsqueeze(1), head).squeeze(1).mul_(student.scale))
    if gradients.head is not None:
        parts = slope.unsqueeze(-1) * hidden.unsqueeze(1)
        gradients.head.index_add_(0, index.flatten(), parts.flatten(0, 1))
    if gradients.bias is not None:
        gradients.bias.index_add_(0, index.flatten(), slope.flatten(), alpha=student.scale)
