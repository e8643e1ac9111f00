"""The loss on the k best entries: bounds, all entries, and what it reads of a cache."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit.losses import TopKLoss, js_loss, kl_loss, topk_loss
from kdkit.outputs import ModelOutput, SparseLogits, StepOutputs


def test_with_every_entry_it_is_the_full_divergence(rng: torch.Generator) -> None:
    student, teacher = 3 * torch.randn(2, 5, 9, generator=rng, dtype=torch.float64)
    for k in (9, 99):
        torch.testing.assert_close(topk_loss(student, teacher, k=k), kl_loss(student, teacher))
        value = topk_loss(student, teacher, k=k, divergence="js", temperature=2.0)
        torch.testing.assert_close(value, js_loss(student, teacher, temperature=2.0))


def test_the_bucket_is_a_bound_that_grows_with_k(rng: torch.Generator) -> None:
    student, teacher = 3 * torch.randn(2, 50, 20, generator=rng, dtype=torch.float64)
    values = torch.stack([topk_loss(student, teacher, k=k, reduction="none") for k in range(1, 21)])
    assert (values.diff(dim=0) > -1e-12).all()
    assert (values[0] > 0).all()


def test_by_hand() -> None:
    """A teacher at (0.5, 0.3, 0.2), a uniform student, the best entry alone: (0.5, 0.5) against (1/3, 2/3)."""
    teacher, student = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.zeros(1, 3)
    expected = 0.5 * math.log(0.5 * 3) + 0.5 * math.log(0.5 * 1.5)
    assert topk_loss(student, teacher, k=1).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rest", ["bucket", "renormalise", "teacher", "none"])
def test_a_cache_gives_what_the_logits_give(rest: str, rng: torch.Generator) -> None:
    student, teacher = 3 * torch.randn(2, 4, 6, 12, generator=rng)
    mask = torch.rand(4, 6, generator=rng) < 0.7
    best = (teacher / 2).log_softmax(-1).topk(5)
    sparse = SparseLogits(best.indices, best.values, torch.log1p(-best.values.exp().sum(-1)), 12, 2.0)
    placeholder = torch.tensor(math.nan).expand(4, 6, 12)
    for k in (3, 5):
        loss = TopKLoss(k=k, rest=rest, temperature=2.0)  # type: ignore[arg-type]
        live = loss.compute(StepOutputs(ModelOutput(student), ModelOutput(teacher), mask=mask))
        cached = loss.compute(StepOutputs(ModelOutput(student), ModelOutput(placeholder, sparse=sparse), mask=mask))
        torch.testing.assert_close(cached, live)
        assert cached.isfinite().all() and not cached[~mask].any()


def test_with_every_entry_in_the_cache_it_has_any_temperature(rng: torch.Generator) -> None:
    student, teacher = 3 * torch.randn(2, 4, 6, generator=rng)
    best = teacher.log_softmax(-1).topk(6)
    whole = SparseLogits(best.indices, best.values, torch.full((4,), -math.inf), 6)
    loss = TopKLoss(temperature=(1.0, 4.0))
    cached = loss.compute(StepOutputs(ModelOutput(student), ModelOutput(teacher, sparse=whole)))
    torch.testing.assert_close(cached, loss.compute(StepOutputs(ModelOutput(student), ModelOutput(teacher))))
    part = SparseLogits(best.indices[:, :3], best.values[:, :3], torch.full((4,), -1.0), 6)
    with pytest.raises(ValueError, match=r"temperature must be 1, at which 3 of 6 classes are known, got 4\.0"):
        loss.compute(StepOutputs(ModelOutput(student), ModelOutput(teacher, sparse=part)))


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        TopKLoss(k=0)
    with pytest.raises(ValueError, match="'kl' with rest='none'"):
        TopKLoss(rest="none", divergence="js")
    with pytest.raises(ValueError, match="rest must be"):
        TopKLoss(rest="tail")  # type: ignore[arg-type]
