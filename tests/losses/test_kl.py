"""Forward KL against loops, torch and derived values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses import KLLoss, kl_loss

from .conftest import Golden
from .reference import kl, law, mean


def test_golden_values(golden: Golden) -> None:
    assert kl_loss(golden.student, golden.teacher).item() == pytest.approx(0.8441788191, abs=1e-10)
    assert kl_loss(golden.student, golden.teacher, temperature=2.0).item() == pytest.approx(0.3067754615, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_against_loops(rng: torch.Generator, temperature: float) -> None:
    student, teacher = torch.randn(2, 7, 9, generator=rng, dtype=torch.float64)
    expected = mean([kl(law(t, temperature), law(s, temperature)) for s, t in zip(student, teacher)])
    assert kl_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


def test_against_torch(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 7, 9, generator=rng)
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    assert torch.allclose(kl_loss(student, teacher), expected)


def test_gradient_is_the_difference_of_the_laws(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 4, 5, generator=rng, dtype=torch.float64)
    student.requires_grad_()
    kl_loss(student, teacher, temperature=2.0, reduction="sum").backward()
    expected = (torch.softmax(student / 2, -1) - torch.softmax(teacher / 2, -1)) / 2
    assert torch.allclose(student.grad, expected)


def test_it_is_zero_at_equality_unlike_a_cross_entropy(golden: Golden) -> None:
    assert kl_loss(golden.teacher, golden.teacher).item() == 0


def _with_ban(logits: Tensor) -> Tensor:
    return torch.tensor([[0.3, 1.0, -math.inf, 2.0]], dtype=torch.float64) + logits


def test_banned_classes(rng: torch.Generator) -> None:
    free = torch.randn(1, 4, generator=rng, dtype=torch.float64)
    banned = _with_ban(0)
    assert kl_loss(banned, banned).item() == 0
    assert kl_loss(free, banned).item() == pytest.approx(kl(law(banned[0]), law(free[0])), rel=1e-12)
    student = banned.clone().requires_grad_()
    value = kl_loss(student, free)
    assert value.item() == math.inf
    (slope,) = torch.autograd.grad(value, student)
    assert torch.allclose(slope, torch.softmax(banned, -1) - torch.softmax(free, -1))


def test_a_class_that_underflows_counts_as_banned() -> None:
    teacher = torch.tensor([[0.0, -1e4, 1.0]])
    student = torch.tensor([[0.0, -math.inf, 1.0]])
    assert kl_loss(student, teacher).item() == 0


def test_logits_of_80_and_400_are_exact(rng: torch.Generator) -> None:
    for size in (80.0, 400.0):
        student, teacher = size * torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)
        exact = torch.special.logsumexp(student, -1) - torch.special.logsumexp(teacher, -1)
        exact = exact + (torch.softmax(teacher, -1) * (teacher - student)).sum(-1)
        assert torch.allclose(kl_loss(student.float(), teacher.float(), reduction="none").double(), exact, rtol=1e-4)


def test_a_learnable_temperature_gets_its_gradient_through_both_laws(golden: Golden) -> None:
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: kl_loss(golden.student, golden.teacher, temperature=t), temperature)


def test_options_show_in_the_representation() -> None:
    assert repr(KLLoss(temperature=2.0)) == "KLLoss(reduction='mean', temperature=2.0)"
