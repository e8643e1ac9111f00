"""The shared tensor operations at their corners."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit.errors import InputError
from kdkit.losses._ops import (
    clean,
    entropy_rows,
    kl_rows,
    log_mixture,
    log_probs,
    log_probs_without,
    pick,
    reduce,
    select,
    targets,
    upcast,
    with_gradient,
)


def test_upcast_widens_halves_and_keeps_the_rest() -> None:
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert upcast(torch.zeros(2).to(dtype)).dtype == expected
    values = torch.zeros(2)
    assert upcast(values) is values


def test_clean_hides_masked_rows_from_values_and_gradients() -> None:
    values = torch.tensor([[1.0, 2.0], [math.nan, math.inf]], requires_grad=True)
    cleaned = clean(values, torch.tensor([True, False]))
    assert cleaned.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    (slope,) = torch.autograd.grad(log_probs(values, 2.0, torch.tensor([True, False])).square().sum(), values)
    assert slope[1].tolist() == [0.0, 0.0]
    assert bool(slope.isfinite().all())


def test_kl_of_nothing_is_nothing() -> None:
    banned = torch.tensor([[0.0, -math.inf]])
    assert kl_rows(banned, banned).tolist() == [0.0]
    assert kl_rows(torch.tensor([[math.log(0.5)] * 2]), banned).tolist() == [math.inf]


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_n() -> None:
    assert entropy_rows(torch.tensor([[0.0, -math.inf]])).tolist() == [0.0]
    assert entropy_rows(log_probs(torch.zeros(1, 8))).item() == pytest.approx(math.log(8))


def test_mixtures_have_finite_gradients_everywhere() -> None:
    a = torch.tensor([[0.0, -math.inf, -math.inf]], requires_grad=True)
    b = torch.tensor([[-math.inf, 0.0, -math.inf]])
    mixed = log_mixture(a, b, 0.25)
    assert mixed.exp().tolist() == [pytest.approx([0.25, 0.75, 0.0])]
    assert torch.autograd.grad(mixed.sum(), a)[0].tolist() == [[1.0, 0.0, 0.0]]


def test_a_class_is_left_out_exactly() -> None:
    logits = torch.tensor([[1e4, 1.0, 2.0], [0.0, -math.inf, -math.inf]])
    logs = log_probs_without(logits, torch.tensor([0, 0]))
    assert logs[:, 0].tolist() == [-math.inf, -math.inf]
    assert torch.allclose(logs[0, 1:], torch.tensor([1.0, 2.0]).log_softmax(-1))
    assert torch.allclose(logs[1, 1:], torch.tensor([0.5, 0.5]).log())


def test_targets_are_safe_to_index_with() -> None:
    labels = torch.tensor([2, -100, 1])
    index, valid = targets(labels, torch.tensor([True, True, False]), -100)
    assert index.tolist() == [2, 0, 0]
    assert valid is not None
    assert valid.tolist() == [True, False, False]
    soft, everywhere = targets(torch.eye(3), None, -100)
    assert soft.tolist() == [0, 1, 2]
    assert everywhere is None
    assert pick(torch.arange(6.0).view(2, 3), torch.tensor([2, 0])).tolist() == [2.0, 3.0]


def test_select_flattens_and_drops() -> None:
    values = torch.arange(12.0).view(2, 2, 3)
    assert select(values, None).shape == (4, 3)
    assert select(values, torch.tensor([[True, False], [False, True]])).tolist() == [[0, 1, 2], [9, 10, 11]]


def test_reduce_over_nothing_is_zero() -> None:
    for reduction in ("mean", "sum"):
        assert reduce(torch.zeros(0), None, reduction, "x").item() == 0
        assert reduce(torch.tensor([math.inf]), torch.tensor([False]), reduction, "x").item() == 0
    with pytest.raises(InputError, match=r"^x: reduction must be one of 'mean', 'sum', 'none', got 'means'; did you"):
        reduce(torch.zeros(2), None, "means", "x")


def test_a_known_gradient_is_scaled_by_what_comes_in() -> None:
    source = torch.zeros(2, 2, requires_grad=True)
    value = with_gradient(source, torch.tensor(3.0, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    assert value.dtype == torch.float32
    assert torch.autograd.grad(2 * value, source)[0].tolist() == [[2.0, 0.0], [0.0, 2.0]]
