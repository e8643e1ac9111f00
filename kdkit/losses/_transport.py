"""Optimal transport between two batches with uniform weights: costs, plans, and gradients that need no unrolling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.losses._checks import check_at_least, check_choice, check_positive, refuse
from kdkit.losses._ops import once

__all__ = [
    "Solver",
    "TransportProblem",
    "Value",
    "exact_plan",
    "lowrank_plan",
    "pairwise_cost",
    "sinkhorn_plan",
    "transport_gradient",
    "unbalanced_plan",
]

Solver = Literal["sinkhorn", "exact", "unbalanced", "lowrank"]
Value = Literal["transport", "regularized"]

_BLOCK = {"cpu": 2**19, "cuda": 2**26}
"""Entries of ``[rows, M, C]`` that are held at once."""


def _differences(student: Tensor, teacher: Tensor) -> Any:
    """``(rows, student[rows] - teacher)`` over slices of the student's rows; the tensor may be overwritten."""
    step = max(1, _BLOCK.get(student.device.type, 2**19) // max(1, teacher.numel()))
    for start in range(0, student.shape[0], step):
        rows = slice(start, start + step)
        yield rows, student[rows, None, :] - teacher


class _PairwiseCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, power: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.power = power
        cost = student.new_empty(student.shape[0], teacher.shape[0])
        for rows, gap in _differences(student, teacher):
            gap = gap.abs_()
            torch.sum(gap if power == 1 else gap.pow_(power), dim=-1, out=cost[rows])
        return cost

    @staticmethod
    def backward(ctx: Any, grad_cost: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors
        grad = torch.empty_like(student)
        with torch.no_grad():
            for rows, gap in _differences(student, teacher):
                slope = gap.sign() if ctx.power == 1 else ctx.power * gap.sign() * gap.abs_().pow_(ctx.power - 1)
                torch.sum(slope.mul_(grad_cost[rows, :, None]), dim=1, out=grad[rows])
        return once(grad, student, grad_cost), None, None


def pairwise_cost(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    r"""``C_ij = sum_c |student_ic - teacher_jc| ** power``, ``[N, M]``, differentiable once in the student.

    Computed block by block: nothing of size ``N * M * C`` is ever held. At equal entries the slope is taken as 0.
    """
    cost: Tensor = _PairwiseCost.apply(student, teacher, power)
    return cost


def _solve_reduced(plan: Tensor, right: Tensor) -> Tensor:
    """Solve ``(diag(P^T 1) - P^T diag(P 1)^-1 P) v = right``, the marginal conditions without their row part.

    The system knows ``v`` up to a constant; ``outer(b, b)`` fixes it, and a ridge of 1e-12 keeps solvable what the
    plan leaves unconnected (groups of rows and columns with no mass between them).
    """
    a, b = plan.sum(dim=1), plan.sum(dim=0)
    ridge = 1e-12 * b.mean() * torch.eye(len(b), dtype=b.dtype, device=b.device)
    system = torch.diag(b) - plan.T @ (plan / a.unsqueeze(1)) + torch.outer(b, b) + ridge
    solution: Tensor = torch.linalg.solve(system, right)
    return solution


def _balance(kernel: Tensor, v: Tensor, tolerance: float, limit: int) -> tuple[Tensor, int]:
    """Scale the columns, ``v``, of ``exp(kernel + u + v)``, whose rows are normalised by ``u`` all along.

    The Sinkhorn update is ``v += log b - log P^T 1``. Every ten of them the error is looked at and Newton steps are
    tried, kept as long as each at least halves it: they end what would take thousands of updates.
    Returns ``v`` and the number of iterations of either kind, at most ``limit``.
    """
    rows, columns = kernel.shape
    kept, error, newton = v, math.inf, False
    for iteration in range(limit):
        log_conditional = torch.log_softmax(kernel + v, dim=1)
        log_excess = torch.logsumexp(log_conditional, dim=0) + math.log(columns / rows)
        if not newton and iteration % 10:
            v = v - log_excess
            continue
        previous, error = error, float(torch.expm1(log_excess).abs().mean())
        if error <= tolerance:
            return v, iteration
        if newton and not error <= previous / 2:
            v, error, newton = kept, previous, False
        else:
            kept, newton = v, True
            v = v - _solve_reduced(log_conditional.exp() / rows, torch.expm1(log_excess) / columns)
    return kept if newton else v, limit


@torch.no_grad()
def sinkhorn_plan(cost: Tensor, epsilon: float, tolerance: float, max_iterations: int) -> Tensor:
    r"""The plan of ``min <P, C> + epsilon KL(P || a b^T)`` with uniform marginals, by Sinkhorn in the log domain.

    A small ``epsilon`` is reached by halving a larger one, roughly balanced at each stop. The row marginals of the
    result are exact; its column marginals are off by at most ``tolerance`` in total unless ``max_iterations``, over
    all stops, came first.
    """
    v = torch.zeros_like(cost[0])
    halvings = max(0, math.ceil(math.log2(max(float(cost.max()) / (20 * epsilon), 1.0))))
    left = max_iterations
    for stop in range(halvings, -1, -1):
        kernel = cost / (-epsilon * 2**stop)
        v, used = _balance(kernel, v, tolerance if stop == 0 else 0.01, left)
        left -= used
        v = v * 2 if stop else v
    return torch.softmax(kernel + v, dim=1) / len(cost)


@torch.no_grad()
def transport_gradient(plan: Tensor, cost: Tensor, epsilon: float) -> Tensor:
    r"""Derivative of ``<P(C), C>`` with respect to ``C`` at the entropic optimum ``P``.

    With ``P = exp((f + g - C) / epsilon)`` and both marginals held,

    .. math:: \frac{\partial}{\partial C_{ij}} \langle P, C \rangle
        = P_{ij} \left[ 1 + \frac{u_i + v_j - C_{ij}}{\epsilon} \right], \qquad
        \begin{pmatrix} \mathrm{diag}(P 1) & P \\ P^\top & \mathrm{diag}(P^\top 1) \end{pmatrix}
        \begin{pmatrix} u \\ v \end{pmatrix} =
        \begin{pmatrix} (P \circ C)\, 1 \\ (P \circ C)^\top 1 \end{pmatrix}

    which is the implicit function theorem applied to the marginal conditions.
    """
    weighted = plan * cost
    mean = weighted.sum(dim=1) / plan.sum(dim=1)
    v = _solve_reduced(plan, weighted.sum(dim=0) - mean @ plan)
    u = mean - (plan @ v) / plan.sum(dim=1)
    return plan * (1 + (u.unsqueeze(1) + v - cost) / epsilon)


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


def unbalanced_plan(
    cost: Tensor, epsilon: float, marginal_penalty: float, tolerance: float, max_iterations: int
) -> Tensor:
    """The plan of ``min <P, C> + epsilon KL(P || a b^T) + marginal_penalty (KL(P 1 || a) + KL(P^T 1 || b))``, by
    POT's stabilised unbalanced Sinkhorn on the host."""
    options = {"method": "sinkhorn_stabilized", "reg_type": "kl", "stopThr": tolerance, "numItermax": max_iterations}
    plan = _pot().unbalanced.sinkhorn_unbalanced(*_uniform(cost), epsilon, marginal_penalty, **options)
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


def _kl(values: Tensor, reference: Tensor) -> Tensor:
    """Generalised KL of non-negative tensors, masses included."""
    return (torch.xlogy(values, values / reference) - values + reference).sum()


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

    def check(self, name: str) -> TransportProblem:
        """The problem itself, if its fields are within their ranges; ``name`` is the loss, for the message."""
        check_positive(name, "epsilon", self.epsilon)
        check_choice(name, "solver", self.solver, ("sinkhorn", "exact", "unbalanced", "lowrank"))
        check_choice(name, "value", self.value, ("transport", "regularized"))
        check_positive(name, "tolerance", self.tolerance)
        check_at_least(name, "max_iterations", self.max_iterations, 1)
        check_positive(name, "marginal_penalty", self.marginal_penalty)
        check_at_least(name, "rank", self.rank, 1)
        if self.solver == "unbalanced" and self.value == "transport":
            way_out = "unbalanced plans may drop mass, so that their transport cost alone rewards a distant student"
            refuse(name, "value", "'regularized' with solver='unbalanced'", self.value, way_out)
        return self

    def plan(self, cost: Tensor) -> Tensor:
        """The plan for a float64 cost, ``[N, M]``."""
        if self.solver == "exact":
            return exact_plan(cost)
        if self.solver == "lowrank":
            return lowrank_plan(cost, self.rank, self.tolerance, self.max_iterations)
        if self.solver == "unbalanced":
            return unbalanced_plan(cost, self.epsilon, self.marginal_penalty, self.tolerance, self.max_iterations)
        return sinkhorn_plan(cost, self.epsilon, self.tolerance, self.max_iterations)

    @torch.no_grad()
    def solve(self, cost: Tensor) -> tuple[Tensor, Tensor]:
        """The value reported for a float64 cost and its derivative with respect to the cost, both constants; NaN for
        a cost that is not finite, so that a diverged network shows as such."""
        if not bool(cost.isfinite().all()):
            return cost.new_tensor(math.nan), torch.full_like(cost, math.nan)
        plan = self.plan(cost)
        total = (plan * cost).sum()
        if self.solver in ("exact", "lowrank"):
            return total, plan
        if self.value == "transport":
            return total, transport_gradient(plan, cost, self.epsilon)
        a, b = plan.new_tensor(1 / plan.shape[0]), plan.new_tensor(1 / plan.shape[1])
        total = total + self.epsilon * _kl(plan, a * b)
        if self.solver == "unbalanced":
            total = total + self.marginal_penalty * (_kl(plan.sum(dim=1), a) + _kl(plan.sum(dim=0), b))
        return total, plan
