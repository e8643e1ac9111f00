"""NKD against a plain implementation of the published formula, derived values and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import InputError
from kdkit.losses import NKDLoss, kl_loss, nkd_loss

from .conftest import Golden
from .reference import law, mean


def plain(student: Tensor, teacher: Tensor, labels: list[int], temperature: float, gamma: float) -> float:
    """The formula row by row; the label's class is taken out of the lists."""
    values = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        label_term = -law(t)[y] * math.log(law(s)[y])
        keep = [c for c in range(len(s)) if c != y]
        p, q = law(t[keep], temperature), law(s[keep], temperature)
        others = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        values.append(label_term + gamma * temperature**2 * others)
    return mean(values)


def test_golden_value(golden: Golden) -> None:
    value = nkd_loss(golden.student, golden.teacher, golden.labels)
    assert value.item() == pytest.approx(3.5167134724, abs=1e-10)


@pytest.mark.parametrize(("temperature", "gamma"), [(1.0, 1.5), (3.0, 3.5), (0.7, 0.0)])
def test_against_the_plain_formula(rng: torch.Generator, temperature: float, gamma: float) -> None:
    student, teacher = torch.randn(2, 9, 7, generator=rng, dtype=torch.float64)
    labels = torch.randint(7, (9,), generator=rng)
    expected = plain(student, teacher, labels.tolist(), temperature, gamma)
    value = nkd_loss(student, teacher, labels, temperature=temperature, gamma=gamma)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_the_label_is_left_out_exactly_however_large_it_is() -> None:
    student = torch.tensor([[5e4, 1.0, 2.0, 0.0]])
    teacher = torch.tensor([[9e4, 0.0, 1.0, 2.0]])
    value = nkd_loss(student, teacher, torch.tensor([0]), gamma=1.0)
    p, q = law(teacher[0, 1:]), law(student[0, 1:])
    assert value.item() == pytest.approx(-sum(a * math.log(b) for a, b in zip(p, q)), rel=1e-6)


def test_two_classes_leave_the_label_term_alone() -> None:
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    value = nkd_loss(student, teacher, torch.tensor([1]))
    assert value.item() == pytest.approx(-law(teacher[0])[1] * math.log(law(student[0])[1]))


def test_the_second_term_has_the_gradient_of_a_divergence(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 4, 6, generator=rng, dtype=torch.float64)
    labels, gamma = torch.tensor([0, 5, 2, 2]), 2.0
    student.requires_grad_()
    with_term = nkd_loss(student, teacher, labels, gamma=gamma) - nkd_loss(student, teacher, labels, gamma=0.0)
    keep = torch.ones(4, 6, dtype=torch.bool).scatter(1, labels[:, None], False)
    divergence = gamma * kl_loss(student[keep].view(4, 5), teacher[keep].view(4, 5))
    slopes = [torch.autograd.grad(value, student)[0] for value in (with_term, divergence)]
    assert torch.allclose(*slopes)


def test_soft_labels_stand_for_their_likeliest_class(golden: Golden) -> None:
    soft = F.one_hot(golden.labels, 5) * 0.6 + 0.08
    values = [nkd_loss(golden.student, golden.teacher, labels) for labels in (golden.labels, soft)]
    assert torch.equal(*values)


def test_banned_classes() -> None:
    banned = torch.tensor([[1.0, 0.0, -math.inf, 2.0]])
    free = torch.tensor([[0.0, 1.0, 0.5, 1.0]])
    assert math.isfinite(nkd_loss(free, banned, torch.tensor([1])).item())
    assert math.isfinite(nkd_loss(banned, banned, torch.tensor([2])).item())
    assert nkd_loss(banned, free, torch.tensor([1])).item() == math.inf
    assert nkd_loss(banned, free, torch.tensor([2])).item() == math.inf


def test_a_row_with_nothing_but_its_label_is_finite() -> None:
    alone = torch.tensor([[1.0, -math.inf, -math.inf]], requires_grad=True)
    value = nkd_loss(alone, alone.detach(), torch.tensor([0]), gamma=1.0)
    assert value.item() == pytest.approx(math.log(2))
    assert bool(torch.autograd.grad(value, alone)[0].isfinite().all())


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"^NKDLoss: gamma must be a number of at least 0.0, got -1"):
        NKDLoss(gamma=-1)
    with pytest.raises(InputError, match=r"student_logits must be .+ with at least 2 classes, got float32 \[3, 1\]"):
        nkd_loss(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
