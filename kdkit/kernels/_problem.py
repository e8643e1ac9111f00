"""What the fused losses compute, arguments checked and flattened, and how its derivatives reach the networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdkit.kernels._divergences import Divergence
from kdkit.losses._ops import once
from kdkit.losses._sparse import Entries

__all__ = ["Gradients", "Known", "Network", "Problem", "Solved", "Solver", "solve"]


@dataclass(frozen=True, slots=True)
class Network:
    """One side: the logits are ``cap(scale * (hidden @ head.T + bias))`` with ``cap(z) = softcap tanh(z / softcap)``.

    Attributes:
        hidden: ``[N, H]``, all rows.
        head: ``[V, H]``, the entries that count.
        bias: ``[V]`` or ``None``.
        scale, softcap: numbers; no cap where ``None``.
        temperature: of its law in the divergence.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    temperature: float

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them."""
        return self.hidden, self.head, self.bias


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a teacher at some entries of each row.

    Attributes:
        entries: the divergence, see :data:`~kdkit.losses._sparse.Entries`.
        values: its second argument for all rows, ``[N, m]``.
        index: int64 ``[N, k]``.
        repeated: whether an entry may occur twice in a row.
        alone: whether the other entries do not matter, so that their logits need not be computed.
    """

    entries: Entries
    values: Tensor
    index: Tensor
    repeated: bool
    alone: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them."""
        return self.values, self.index


@dataclass(frozen=True, slots=True)
class Problem:
    """A divergence and a cross-entropy for the rows ``kept``.

    Attributes:
        student: the network that learns.
        teacher: the other one, or what is known of it.
        labels: int64 ``[N]`` or ``None``.
        kept: int64, the rows that count.
        divergence: which; ``None`` where ``teacher`` has one.
        weights: of the divergence and of the cross-entropy; a term of weight 0 is not computed.
        chunk: rows of the student's tile, or ``None`` for what the memory budget allows.
    """

    student: Network
    teacher: Network | Known
    labels: Tensor | None
    kept: Tensor
    divergence: Divergence | None
    weights: tuple[float, float]
    chunk: int | None


class Gradients(NamedTuple):
    """With respect to the student's hidden states ``[N, H]``, head ``[V, H]`` and bias ``[V]``, as far as asked for, in
    the dtype of the arithmetic."""

    hidden: Tensor | None
    head: Tensor | None
    bias: Tensor | None


class Solved(NamedTuple):
    """Values of the rows that count, ``[n]`` for each term, and the gradients of their weighted sum."""

    divergence: Tensor
    cross_entropy: Tensor
    gradients: Gradients


Solver = Callable[[Problem, tuple[bool, bool, bool], float | Tensor], Solved]
"""``solver(problem, needed, row_weights)``: gradients of ``sum_i w_i (D_i + c CE_i)`` for those of hidden states, head
and bias that are needed; ``row_weights`` is a number or ``[n]``."""


class _Fused(torch.autograd.Function):
    """Value and gradients from one pass; a second one only where the rows of an unreduced loss get other gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        problem: Problem,
        solver: Solver,
        reduction: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sources = (hidden, head, bias)
        needed = tuple(each is not None and each.requires_grad for each in sources)
        count = max(len(problem.kept), 1) if reduction == "mean" else 1
        ctx.problem, ctx.solver, ctx.needed, ctx.unit = problem, solver, needed, 1 / count
        ctx.dtypes = [None if each is None else each.dtype for each in sources]
        more = (*problem.teacher.tensors(), problem.labels, problem.kept)
        kept = [each for each in (*sources, *more) if each is not None and not each.is_inference()]
        ctx.save_for_backward(*kept)
        solved = solver(problem, needed, 1 / count)  # type: ignore[arg-type]
        ctx.gradients = solved.gradients
        values = _reduced(solved, problem, reduction, len(hidden))
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        factor = None if gradients is None else _uniform(upstream, ctx.problem.kept)
        if gradients is None or factor is None:
            _ = ctx.saved_tensors  # raises if one of them was changed in place since
            rows = upstream.index_select(0, ctx.problem.kept) if upstream.ndim else float(upstream)
            gradients = ctx.solver(ctx.problem, ctx.needed, rows * ctx.unit)[2]
        elif isinstance(factor, Tensor) or factor != 1.0:
            for each in gradients:
                if each is not None:
                    each.mul_(factor)
        results = [None if each is None else each.to(dtype) for each, dtype in zip(gradients, ctx.dtypes, strict=True)]
        if torch.is_grad_enabled():
            sources = ctx.saved_tensors
            results = [None if each is None else once(each, *sources, upstream) for each in results]
        return *results, None, None, None


def _uniform(upstream: Tensor, kept: Tensor) -> float | Tensor | None:
    """The one number by which all rows that count are to be multiplied, if there is one; a 0-d tensor where the host
    would have to wait for it."""
    if upstream.ndim == 0:
        return float(upstream) if upstream.is_cpu else upstream
    rows = upstream.index_select(0, kept)
    if not len(rows):
        return 1.0
    low, high = torch.stack(rows.aminmax()).tolist()
    return float(low) if low == high else None


def _reduced(solved: Solved, problem: Problem, reduction: str, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Total, divergence and cross-entropy as the reduction asks for them."""
    parts = []
    for values in (solved.divergence, solved.cross_entropy):
        if reduction == "none":
            parts.append(values.new_zeros(rows).index_copy_(0, problem.kept, values))
        else:
            total = values.double().sum() / (max(len(values), 1) if reduction == "mean" else 1)
            parts.append(total.to(values.dtype))
    weight, ce_weight = problem.weights
    total = torch.zeros_like(parts[0])
    for part, share in zip(parts, (weight, ce_weight), strict=True):
        if share:
            total = total + share * part
    return total, parts[0], parts[1]


def solve(
    problem: Problem, sources: tuple[Tensor, Tensor, Tensor | None], solver: Solver, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, divergence and cross-entropy; the first is differentiable in ``sources``, hidden states, head and bias of
    the student in their full shapes, whose detached values the problem holds."""
    with torch.autocast(problem.student.hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in sources):
            result: tuple[Tensor, Tensor, Tensor] = _Fused.apply(*sources, problem, solver, reduction)
            return result
        solved = solver(problem, (False, False, False), 1.0)
        return _reduced(solved, problem, reduction, len(problem.student.hidden))
