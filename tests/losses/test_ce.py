"""Cross-entropy against torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdkit.errors import InputError
from kdkit.losses import CELoss, ce_loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_against_torch(rng: torch.Generator, label_smoothing: float, reduction: str) -> None:
    logits = torch.randn(8, 5, generator=rng, dtype=torch.float64)
    labels = torch.randint(5, (8,), generator=rng)
    labels[[2, 5]] = -100
    expected = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    value = ce_loss(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    assert torch.allclose(value, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_soft_labels_against_torch(rng: torch.Generator, label_smoothing: float) -> None:
    logits = torch.randn(8, 5, generator=rng)
    labels = torch.rand(8, 5, generator=rng).softmax(-1)
    expected = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    assert torch.allclose(ce_loss(logits, labels, label_smoothing=label_smoothing), expected)
    assert torch.allclose(CELoss(label_smoothing)(logits, labels), expected)


def test_one_hot_labels_equal_indices(rng: torch.Generator) -> None:
    logits, labels = torch.randn(8, 5, generator=rng), torch.randint(5, (8,), generator=rng)
    assert torch.allclose(ce_loss(logits, F.one_hot(labels, 5).float()), ce_loss(logits, labels))


def test_soft_labels_get_no_gradient_and_may_be_half_precision() -> None:
    labels = torch.full((2, 4), 0.25, dtype=torch.bfloat16, requires_grad=True)
    assert not ce_loss(torch.zeros(2, 4), labels).requires_grad
    assert ce_loss(torch.zeros(2, 4), labels).item() == pytest.approx(math.log(4))


def test_another_ignore_index() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, -1])
    assert torch.allclose(ce_loss(logits, labels, ignore_index=-1), ce_loss(logits[:1], labels[:1]))
    with pytest.raises(InputError, match=r"ce_loss: labels must be in \[0, 2\) or -100 .+, got -1; compare"):
        ce_loss(logits, labels)


def test_banned_classes() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    value = ce_loss(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(math.log(1 + math.e))
    assert bool(torch.autograd.grad(value, logits)[0].isfinite().all())
    assert ce_loss(logits, torch.tensor([2])).item() == math.inf
    assert ce_loss(logits, torch.tensor([0]), label_smoothing=0.1).item() == math.inf


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, math.nan])
def test_a_smoothing_that_is_no_share_is_refused(label_smoothing: float) -> None:
    with pytest.raises(InputError, match=r"^CELoss: label_smoothing must be a number in \[0.0, 1.0\), got"):
        CELoss(label_smoothing)


def test_masked_soft_labels_may_hold_anything(rng: torch.Generator) -> None:
    logits = torch.randn(3, 4, generator=rng).requires_grad_()
    labels = torch.full((3, 4), 0.25).index_fill(0, torch.tensor([1]), math.nan)
    value = ce_loss(logits, labels, mask=torch.tensor([True, False, True]))
    assert torch.allclose(value, ce_loss(logits[[0, 2]], labels[[0, 2]]))
    assert torch.autograd.grad(value, logits)[0][1].tolist() == [0.0] * 4
