"""Generalised Jensen-Shannon divergence against loops, derived values and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit.errors import InputError
from kdkit.losses import JSLoss, js_loss, kl_loss, reverse_kl_loss

from .conftest import Golden
from .reference import kl, law, mean


@pytest.mark.parametrize(("beta", "value"), [(0.1, 0.0730313651), (0.5, 0.1989357766), (0.9, 0.0875383656)])
def test_golden_values(golden: Golden, beta: float, value: float) -> None:
    assert js_loss(golden.student, golden.teacher, beta=beta).item() == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.5, 0.99])
def test_against_loops(rng: torch.Generator, beta: float) -> None:
    student, teacher = torch.randn(2, 7, 9, generator=rng, dtype=torch.float64)
    expected = []
    for s, t in zip(student, teacher):
        p, q = law(t, 2.0), law(s, 2.0)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q)]
        expected.append(beta * kl(p, m) + (1 - beta) * kl(q, m))
    assert js_loss(student, teacher, beta=beta, temperature=2.0).item() == pytest.approx(mean(expected), rel=1e-12)


def test_it_is_symmetric_at_one_half_and_swaps_beta_otherwise(golden: Golden) -> None:
    s, t = golden.student, golden.teacher
    assert torch.allclose(js_loss(s, t), js_loss(t, s), rtol=1e-12)
    assert torch.allclose(js_loss(s, t, beta=0.2), js_loss(t, s, beta=0.8), rtol=1e-12)


def test_it_vanishes_at_both_ends_like_the_two_divergences(golden: Golden) -> None:
    s, t = golden.student, golden.teacher
    assert js_loss(s, t, beta=1e-3).item() / 1e-3 == pytest.approx(0.8429, abs=1e-4)
    assert js_loss(s, t, beta=0.999).item() / 1e-3 == pytest.approx(1.2558, abs=1e-4)


def test_rescaled_ends_are_exactly_the_two_divergences_and_are_approached(golden: Golden) -> None:
    s, t = golden.student, golden.teacher
    assert torch.equal(js_loss(s, t, beta=0.0, rescaled=True), kl_loss(s, t))
    assert torch.equal(js_loss(s, t, beta=1.0, rescaled=True), reverse_kl_loss(s, t))
    assert js_loss(s, t, beta=1e-6, rescaled=True).item() == pytest.approx(kl_loss(s, t).item(), rel=1e-4)
    assert js_loss(s, t, beta=1 - 1e-6, rescaled=True).item() == pytest.approx(reverse_kl_loss(s, t).item(), rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_are_refused_without_rescaling(golden: Golden, beta: float) -> None:
    text = rf"js_loss: beta must be strictly between 0 and 1, got {beta}; the divergence is 0 there; use kl_loss"
    with pytest.raises(InputError, match=text):
        js_loss(golden.student, golden.teacher, beta=beta)
    with pytest.raises(InputError, match=r"^JSLoss: beta must be strictly between"):
        JSLoss(beta=beta)


@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan, "a"])
def test_a_beta_that_is_no_share_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match=r"^JSLoss: beta must be a number in \[0.0, 1.0\], got"):
        JSLoss(beta=beta, rescaled=True)


def test_it_reaches_its_bound_and_no_more() -> None:
    far, away = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 1e4, 0.0]])
    assert js_loss(far, away).item() == pytest.approx(math.log(2), rel=1e-6)
    bound = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    assert js_loss(far, away, beta=0.1).item() == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_banned_classes_on_either_side_are_finite_and_exact(rng: torch.Generator, beta: float) -> None:
    free = torch.randn(1, 4, generator=rng, dtype=torch.float64)
    banned = torch.tensor([[0.3, 1.0, -math.inf, 2.0]], dtype=torch.float64)
    for student, teacher in ((free, banned), (banned, free), (banned, banned)):
        p, q = law(teacher[0]), law(student[0])
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q)]
        expected = beta * kl(p, m) + (1 - beta) * kl(q, m)
        student = student.clone().requires_grad_()
        value = js_loss(student, teacher, beta=beta)
        assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert bool(torch.autograd.grad(value, student)[0].isfinite().all())


def test_it_is_never_negative_at_equality(rng: torch.Generator) -> None:
    logits = 5 * torch.randn(100, 50, generator=rng)
    assert js_loss(logits, logits, reduction="none").abs().max().item() < 1e-6
