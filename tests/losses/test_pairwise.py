"""Costs between all rows of two batches: blocks, gradients, equal rows."""

from __future__ import annotations

import pytest
import torch

from kdkit.errors import InputError
from kdkit.losses import _pairwise, sinkhorn_loss
from kdkit.losses._pairwise import cost_between, cost_slope, pairwise_cost


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("block", [1, 7, 50, 10**6])
def test_cost_in_blocks(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, power: float, block: int) -> None:
    monkeypatch.setitem(_pairwise._BLOCK, "cpu", block)
    student, teacher = torch.rand(7, 3, generator=rng).double(), torch.rand(4, 3, generator=rng).double()
    student.requires_grad_()
    expected = (student[:, None] - teacher).abs().pow(power).sum(-1)
    assert torch.allclose(pairwise_cost(student, teacher, power), expected)
    assert torch.autograd.gradcheck(lambda x: pairwise_cost(x, teacher, power), student)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_cost_nothing_and_have_no_slope(rng: torch.Generator, dtype: torch.dtype) -> None:
    rows = torch.softmax(torch.randn(30, 1000, generator=rng, dtype=dtype), -1).requires_grad_()
    for power in (1.0, 1.5, 2.0):
        cost = pairwise_cost(rows, rows.detach().flip(0), power).flip(1).diagonal()
        assert bool((cost == 0).all())
        (slope,) = torch.autograd.grad(cost.sum(), rows)
        assert slope.abs().max().item() < 1e-12


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_float32_costs_are_as_good_as_their_inputs(rng: torch.Generator, power: float) -> None:
    student, teacher = torch.softmax(3 * torch.randn(2, 40, 500, generator=rng), -1)
    exact = (student.double()[:, None] - teacher.double()).abs().pow(power).sum(-1)
    assert torch.allclose(pairwise_cost(student, teacher, power).double(), exact, rtol=1e-6, atol=1e-6)
    near = student.double() + 1e-4 * torch.rand(40, 500, generator=rng)
    exact = (student.double() - near.float().double()).abs().pow(power).sum(-1)
    values = pairwise_cost(student, near.float(), power).diagonal().double()
    assert torch.allclose(values, exact, rtol=1e-5 if power == 2 else 1e-4)


def test_where_single_entries_agree_the_slope_is_a_subgradient() -> None:
    student = torch.tensor([[0.5, 0.3, 0.2]]).requires_grad_()
    teacher = torch.tensor([[0.5, 0.2, 0.3]])
    (slope,) = torch.autograd.grad(pairwise_cost(student, teacher, 1.0).sum(), student)
    assert slope[0, 1:].tolist() == [1, -1]
    assert -1 <= slope[0, 0].item() <= 1


def test_costs_that_are_not_finite_show(rng: torch.Generator) -> None:
    student, teacher = torch.rand(2, 3, 4, generator=rng)
    student[1, 2] = torch.nan
    for power in (1.0, 1.5, 2.0):
        cost = pairwise_cost(student, teacher, power)
        assert bool(cost[1].isnan().all())
        assert bool(cost[[0, 2]].isfinite().all())


def test_autocast_changes_nothing(rng: torch.Generator) -> None:
    student, teacher = torch.rand(2, 6, 4, generator=rng)
    student.requires_grad_()
    for power in (1.0, 1.5, 2.0):
        results = []
        for inside in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
                cost = pairwise_cost(student, teacher, power)
                results.append((cost, *torch.autograd.grad((cost * cost.detach()).sum(), student)))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("power", [1.0, 1.5])
def test_compiled_is_the_same(rng: torch.Generator, power: float) -> None:
    for rows, others, width in ((7, 4, 3), (40, 30, 100)):
        teacher = torch.softmax(torch.randn(others, width, generator=rng), -1)
        student = torch.softmax(torch.randn(rows, width, generator=rng), -1)
        student[0] = teacher[0]
        cost = cost_between(student, teacher, power)
        torch.testing.assert_close(cost_between(student, teacher, power, "compiled"), cost, rtol=1e-5, atol=1e-6)
        weight = torch.rand(rows, others, generator=rng)
        slopes = [cost_slope(student, teacher, cost, weight, power, each) for each in ("tiles", "compiled")]
        torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sinkhorn_compiled_is_the_same(rng: torch.Generator) -> None:
    student, teacher = (3 * torch.randn(20, 10, generator=rng) for _ in range(2))
    found = []
    for implementation in ("tiles", "compiled"):
        logits = student.clone().requires_grad_()
        value = sinkhorn_loss(logits, teacher, implementation=implementation)
        found.append((value.detach(), *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="implementation must be one of"):
        sinkhorn_loss(student, teacher, implementation="fast")
