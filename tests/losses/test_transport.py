"""The plumbing of transport losses: blocked costs, plans and their derivative."""

from __future__ import annotations

import pytest
import torch

from kdkit.losses import _transport
from kdkit.losses._transport import lowrank_plan, pairwise_cost, sinkhorn_plan, transport_gradient


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_cost_in_blocks(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, power: float, block: int) -> None:
    monkeypatch.setitem(_transport._BLOCK, "cpu", block)
    student, teacher = torch.randn(7, 3, generator=rng).double(), torch.randn(4, 3, generator=rng).double()
    student.requires_grad_()
    expected = (student[:, None] - teacher).abs().pow(power).sum(-1)
    assert torch.allclose(pairwise_cost(student, teacher, power), expected)
    assert torch.autograd.gradcheck(lambda x: pairwise_cost(x, teacher, power), student)


def test_equal_rows_cost_nothing_and_have_no_slope() -> None:
    rows = torch.rand(3, 4, requires_grad=True)
    for power in (1.0, 1.5, 2.0):
        cost = pairwise_cost(rows, rows.detach(), power).diagonal()
        assert bool((cost == 0).all())
        assert bool((torch.autograd.grad(cost.sum(), rows)[0] == 0).all())


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01])
def test_marginals_hold(rng: torch.Generator, epsilon: float) -> None:
    cost = torch.rand(9, 6, generator=rng).double()
    plan = sinkhorn_plan(cost, epsilon, 1e-10, 5000)
    assert bool((plan >= 0).all())
    assert torch.allclose(plan.sum(1), torch.full((9,), 1 / 9).double(), atol=1e-15)
    assert (plan.sum(0) - 1 / 6).abs().sum().item() <= 1e-10


def test_newton_steps_end_what_sinkhorn_alone_would_take_long_for(rng: torch.Generator) -> None:
    laws = torch.softmax(3 * torch.eye(100) + 2 * torch.randn(100, 100, generator=rng), -1).double()
    cost = pairwise_cost(laws[:64], laws[36:], 1.0)
    plan = sinkhorn_plan(cost, 0.1, 1e-9, 60)
    assert (plan.sum(0) - 1 / 64).abs().sum().item() <= 1e-9


def test_derivative_of_the_transport_cost(rng: torch.Generator) -> None:
    cost = torch.rand(5, 4, generator=rng).double()

    def transported(values: torch.Tensor) -> torch.Tensor:
        return (sinkhorn_plan(values, 0.1, 1e-13, 5000) * values).sum()

    slope = transport_gradient(sinkhorn_plan(cost, 0.1, 1e-13, 5000), cost, 0.1)
    for i, j in ((0, 0), (2, 3), (4, 1)):
        step = torch.zeros_like(cost)
        step[i, j] = 1e-5
        numeric = (transported(cost + step) - transported(cost - step)).item() / 2e-5
        assert slope[i, j].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


@pytest.mark.filterwarnings("ignore:Dykstra did not converge")
def test_lowrank_plans_have_their_rank_and_marginals(rng: torch.Generator) -> None:
    cost = torch.rand(6, 5, generator=rng).double()
    plan = lowrank_plan(cost, 2, 1e-9, 200)
    assert int((torch.linalg.svdvals(plan) > 1e-8).sum()) <= 2
    assert torch.allclose(plan.sum(1), torch.full((6,), 1 / 6).double(), atol=1e-4)
    assert torch.allclose(plan.sum(0), torch.full((5,), 1 / 5).double(), atol=1e-4)
