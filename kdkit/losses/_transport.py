"""Optimal transport between two batches with uniform weights: how it is solved and what is reported of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.losses._checks import (
    Temperature,
    check_at_least,
    check_choice,
    check_logits,
    check_positive,
    refuse,
    temperatures,
)
from kdkit.losses._ops import once, select, soften
from kdkit.losses._pairwise import IMPLEMENTATIONS, cost_between, cost_slope
from kdkit.losses._scaling import balanced, self_balanced, transport_gradient, unbalanced

__all__ = ["Solver", "TransportProblem", "Value", "batch_laws", "exact_plan", "lowrank_plan", "transported"]

Solver = Literal["sinkhorn", "exact", "unbalanced", "lowrank"]
Value = Literal["transport", "regularized"]


def batch_laws(
    name: str, student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The softened outputs ``[N, C]`` of both networks at the positions that count; the teacher's detached.

    Raises:
        InputError: for tensors, masks or temperatures that do not fit each other; ``name`` is the loss.
    """
    check_logits(name, student_logits, teacher_logits, mask)
    rows = []
    both = temperatures(name, temperature, student_logits)
    for logits, one in zip((student_logits, teacher_logits.detach()), both, strict=True):
        if isinstance(one, Tensor) and one.ndim:
            one = one.reshape(-1) if mask is None else one[mask]
        rows.append(torch.softmax(soften(select(logits, mask), one), dim=-1))
    return rows[0], rows[1].to(rows[0].dtype)


def _pot() -> Any:
    try:
        import ot
    except ImportError as error:
        raise ConfigError(
            "this solver of sinkhorn_loss needs POT; pip install POT, or use solver='sinkhorn'"
        ) from error
    return ot


def _uniform(cost: Tensor) -> tuple[Any, Any, Any]:
    """``(a, b, C)`` as float64 arrays on the host."""
    array = cost.detach().double().cpu().numpy()
    rows, columns = array.shape
    return cost.new_full((rows,), 1 / rows).cpu().numpy(), cost.new_full((columns,), 1 / columns).cpu().numpy(), array


def exact_plan(cost: Tensor) -> Tensor:
    """The plan of ``min <P, C>`` with uniform marginals, by POT's network simplex on the host."""
    plan = _pot().emd(*_uniform(cost), numItermax=10_000_000)
    return cost.new_tensor(plan)


def lowrank_plan(cost: Tensor, rank: int, tolerance: float, max_iterations: int) -> Tensor:
    r"""A plan ``Q diag(1 / g) R^T`` of rank at most ``rank`` with low ``<P, C>``, by POT's low-rank Sinkhorn.

    POT takes point clouds and their squared Euclidean distance. The cost without its row and column means is handed
    over as such a distance: for :math:`C = U S V^\top` the points :math:`x_i = (U S^{1/2})_i / \sqrt 2` and
    :math:`y_j = -(V S^{1/2})_j / \sqrt 2` have :math:`\|x_i - y_j\|^2 = C_{ij} + r_i + c_j`, and constants per row
    and column change no plan with fixed marginals. So any cost can be used, and exactly that one is. Where it is
    constant but for those means, every plan is as good; the product of the marginals is returned.
    """
    a, b, array = _uniform(cost)
    centred = array - array.mean(axis=1, keepdims=True) - array.mean(axis=0, keepdims=True) + array.mean()
    if abs(centred).max() <= 1e-12 * abs(array).max():
        return torch.full_like(cost, 1 / cost.numel())
    left, scale, right = torch.linalg.svd(torch.from_numpy(centred), full_matrices=False)
    half = (scale / 2).sqrt()
    points = ((left * half).numpy(), (-right.T * half).numpy())
    options = {"rank": rank, "stopThr": tolerance, "numItermax": max_iterations, "alpha": 1e-10}
    q, r, g = _pot().lowrank_sinkhorn(*points, a, b, **options)
    return cost.new_tensor((q / g) @ r.T)


@dataclass(frozen=True, slots=True)
class TransportProblem:
    """How a plan is found and what is reported of it; see :func:`~kdkit.losses.sinkhorn_loss` for the fields."""

    epsilon: float
    solver: Solver
    value: Value
    tolerance: float
    max_iterations: int
    marginal_penalty: float
    rank: int
    implementation: str = "auto"

    def check(self, name: str) -> TransportProblem:
        """The problem itself, if its fields are within their ranges; ``name`` is the loss, for the message."""
        check_positive(name, "epsilon", self.epsilon)
        check_choice(name, "solver", self.solver, ("sinkhorn", "exact", "unbalanced", "lowrank"))
        check_choice(name, "value", self.value, ("transport", "regularized"))
        check_positive(name, "tolerance", self.tolerance)
        check_at_least(name, "max_iterations", self.max_iterations, 1)
        check_positive(name, "marginal_penalty", self.marginal_penalty)
        check_at_least(name, "rank", self.rank, 1)
        check_choice(name, "implementation", self.implementation, IMPLEMENTATIONS)
        if self.solver == "unbalanced" and self.value == "transport":
            way_out = "unbalanced plans may drop mass, so that their transport cost alone rewards a distant student"
            refuse(name, "value", "'regularized' with solver='unbalanced'", self.value, way_out)
        return self

    @torch.no_grad()
    def solve(self, cost: Tensor, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
        """The value reported for a float64 cost and its derivative with respect to the cost, both constants; NaN for
        a cost that is not finite, so that a diverged network shows as such. ``symmetric``: a batch against itself."""
        highest = float(cost.max())
        if not math.isfinite(highest):
            return cost.new_tensor(math.nan), torch.full_like(cost, math.nan)
        if self.solver in ("exact", "lowrank"):
            plan = exact_plan(cost) if self.solver == "exact" else self._lowrank(cost)
            return torch.dot(plan.view(-1), cost.view(-1)), plan
        if self.solver == "unbalanced":
            found = unbalanced(cost, self.epsilon, self.marginal_penalty, self.tolerance, self.max_iterations)
        else:
            solver = self_balanced if symmetric else balanced
            found = solver(cost, self.epsilon, self.tolerance, self.max_iterations)
        plan = found.plan()
        if self.value == "regularized":
            return found.value(), plan
        return torch.dot(plan.view(-1), cost.view(-1)), transport_gradient(plan, cost, self.epsilon)

    def _lowrank(self, cost: Tensor) -> Tensor:
        return lowrank_plan(cost, self.rank, self.tolerance, self.max_iterations)


class _Transported(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, power: float, problem: TransportProblem) -> Tensor:
        cost = cost_between(student, teacher, power, problem.implementation)
        value, slope = problem.solve(cost.double())
        ctx.save_for_backward(student, teacher, cost, slope.to(cost.dtype))
        ctx.power, ctx.implementation = power, problem.implementation
        return value.to(student.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, cost, slope = (saved.detach() for saved in ctx.saved_tensors)
        weight = slope * grad_output.detach()
        gradient = cost_slope(student, teacher, cost, weight, ctx.power, ctx.implementation)
        return once(gradient, *ctx.saved_tensors, grad_output), None, None, None


def transported(student: Tensor, teacher: Tensor, power: float, problem: TransportProblem) -> Tensor:
    """The value of ``problem`` for the cost between two batches of laws, with its gradient for the student; 0-d."""
    value: Tensor = _Transported.apply(student, teacher, power, problem)
    return value
