"""Reverse KL against loops and derived values."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit.losses import kl_loss, reverse_kl_loss

from .conftest import Golden
from .reference import kl, law, mean


def test_golden_value(golden: Golden) -> None:
    assert reverse_kl_loss(golden.student, golden.teacher).item() == pytest.approx(1.2778566290, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_against_loops(rng: torch.Generator, temperature: float) -> None:
    student, teacher = torch.randn(2, 7, 9, generator=rng, dtype=torch.float64)
    expected = mean([kl(law(s, temperature), law(t, temperature)) for s, t in zip(student, teacher)])
    assert reverse_kl_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


def test_it_is_the_forward_divergence_with_the_roles_swapped(golden: Golden) -> None:
    assert torch.equal(reverse_kl_loss(golden.student, golden.teacher), kl_loss(golden.teacher, golden.student))


def test_gradient_in_closed_form(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64)
    student.requires_grad_()
    reverse_kl_loss(student, teacher, reduction="sum").backward()
    q, ratio = torch.softmax(student, -1), student.log_softmax(-1) - teacher.log_softmax(-1)
    assert torch.allclose(student.grad, q * (ratio - (q * ratio).sum(-1, keepdim=True)))


def test_banned_classes(rng: torch.Generator) -> None:
    free = torch.randn(1, 4, generator=rng, dtype=torch.float64)
    banned = torch.tensor([[0.3, 1.0, -math.inf, 2.0]], dtype=torch.float64)
    assert reverse_kl_loss(banned, banned).item() == 0
    assert reverse_kl_loss(banned, free).item() == pytest.approx(kl(law(banned[0]), law(free[0])), rel=1e-12)
    assert reverse_kl_loss(free, banned).item() == math.inf
