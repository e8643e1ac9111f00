"""GOLD: shared entries one by one, the others sorted, groups of tokens as products."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdkit.errors import InputError
from kdkit.losses import GOLDLoss, gold_loss, js_loss, kl_loss, reverse_kl_loss, uld_loss
from kdkit.losses._base import Probe
from kdkit.outputs import ModelOutput, StepOutputs

from .conftest import Golden
from .reference import law

PAIRS = [(0, 2), (3, 0)]


def plain(student: Tensor, teacher: Tensor, beta: float, weight: float, rests: tuple[float, float]) -> float:
    """One row by plain loops."""
    q = [math.exp(rests[0]) * value for value in law(student)]
    p = [math.exp(rests[1]) * value for value in law(teacher)]
    total = 0.0
    for s, t in PAIRS:
        m = beta * p[t] + (1 - beta) * q[s]
        if beta == 0:
            total += p[t] * math.log(p[t] / q[s]) + q[s] - p[t]
        elif beta == 1:
            total += q[s] * math.log(q[s] / p[t]) + p[t] - q[s]
        else:
            total += beta * p[t] * math.log(p[t] / m) + (1 - beta) * q[s] * math.log(q[s] / m)
    left = sorted((v for i, v in enumerate(q) if i not in {s for s, _ in PAIRS}), reverse=True)
    right = sorted((v for i, v in enumerate(p) if i not in {t for _, t in PAIRS}), reverse=True)
    size = max(len(left), len(right))
    left, right = left + [0.0] * (size - len(left)), right + [0.0] * (size - len(right))
    return weight * total + (1 - weight) * sum(abs(a - b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [(5, 4), (4, 6)])
def test_equals_plain_loops(beta: float, sizes: tuple[int, int], rng: torch.Generator) -> None:
    student, teacher = (torch.randn(4, size, generator=rng, dtype=torch.float64) for size in sizes)
    rests = -torch.rand(2, 4, generator=rng, dtype=torch.float64)
    for weight in (None, 0.7):
        values = gold_loss(
            student,
            teacher,
            shared=PAIRS,
            beta=beta,
            shared_weight=weight,
            student_rest=rests[0],
            teacher_rest=rests[1],
            reduction="none",
        )
        used = len(PAIRS) / sizes[1] if weight is None else weight
        for row, value in enumerate(values):
            expected = plain(student[row], teacher[row], beta, used, (float(rests[0, row]), float(rests[1, row])))
            assert value.item() == pytest.approx(expected, abs=1e-12)
            assert value.item() >= 0


def test_with_one_vocabulary_it_is_the_divergence(golden: Golden) -> None:
    for beta, divergence in ((0.0, kl_loss), (1.0, reverse_kl_loss), (0.5, js_loss)):
        assert torch.allclose(
            gold_loss(golden.student, golden.teacher, beta=beta), divergence(golden.student, golden.teacher)
        )
    value = gold_loss(golden.student, golden.teacher, beta=0.1).item()
    assert value == pytest.approx(0.0730313651, abs=1e-10)


def test_without_shared_entries_it_is_uld(golden: Golden) -> None:
    expected = uld_loss(golden.student, golden.teacher)
    assert torch.allclose(gold_loss(golden.student, golden.teacher, shared=[]), expected)


def test_the_ends_of_beta_are_limits(golden: Golden) -> None:
    for beta, factor in ((0.0, 1e-6), (1.0, 1e-6)):
        near = gold_loss(golden.student, golden.teacher, shared=PAIRS, beta=abs(beta - 1e-6), shared_weight=1.0)
        at = gold_loss(golden.student, golden.teacher, shared=PAIRS, beta=beta, shared_weight=1.0)
        assert torch.allclose(near / factor, at, rtol=1e-4)


def test_the_rest_learns_and_the_teachers_does_not(golden: Golden) -> None:
    student, teacher = (torch.full((3,), -0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    gold_loss(golden.student, golden.teacher, student_rest=student, teacher_rest=teacher).backward()
    assert student.grad is not None
    assert bool((student.grad != 0).all())
    assert teacher.grad is None


def test_it_takes_what_the_tokenizers_share() -> None:
    loss = GOLDLoss()
    logits = ModelOutput(torch.zeros(2, 3)), ModelOutput(torch.zeros(2, 4))
    loss.prepare(Probe(StepOutputs(*logits), 2, 3, shared=torch.tensor([[1, 3]])))
    expected = gold_loss(logits[0].logits, logits[1].logits, shared=[[1, 3]])
    assert torch.equal(loss(logits[0].logits, logits[1].logits), expected)
    assert "shared" not in loss.state_dict()


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (None, r"shared must be int64 .+, got None; vocabularies of 5 and 4 entries are two"),
        ([[0, 0], [0, 1]], r"the student's entries\) must be in \[0, 5\) and each there once, got \[0, 0\]"),
        ([[0, 4]], r"the teacher's entries\) must be in \[0, 4\)"),
        ([[0.5, 1.0]], "shared must be int64"),
        ([0, 1, 2], "shared must be int64"),
    ],
)
def test_wrong_pairs_are_refused(shared: object, message: str, golden: Golden) -> None:
    with pytest.raises(InputError, match=message):
        gold_loss(golden.student, golden.teacher[:, :4], shared=shared)  # type: ignore[arg-type]


def test_wrong_options_are_refused(golden: Golden) -> None:
    with pytest.raises(InputError, match=r"gold_loss: beta must be a number in \[0.0, 1.0\], got 2"):
        gold_loss(golden.student, golden.teacher, beta=2)
    with pytest.raises(InputError, match=r"GOLDLoss: shared_weight must be a number in \[0.0, 1.0\], got -1"):
        GOLDLoss(shared_weight=-1)
    with pytest.raises(InputError, match=r"student_rest and teacher_rest must be float of shape \[3\]"):
        gold_loss(golden.student, golden.teacher, student_rest=torch.zeros(2))
