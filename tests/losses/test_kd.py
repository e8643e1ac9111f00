"""Hinton's distillation against torch, derived values and the limit of high temperatures."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdkit.losses import KDLoss, kd_loss, kl_loss

from .conftest import Golden


def test_golden_value(golden: Golden) -> None:
    assert kd_loss(golden.student, golden.teacher, temperature=2.0).item() == pytest.approx(1.2271018459, abs=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_against_torch(rng: torch.Generator, temperature: float) -> None:
    student, teacher = torch.randn(2, 8, 10, generator=rng, dtype=torch.float64)
    laws = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    expected = F.kl_div(*laws, reduction="batchmean") * temperature**2
    assert torch.allclose(kd_loss(student, teacher, temperature=temperature), expected, rtol=1e-10)


def test_the_default_temperature_is_4_and_the_factor_is_always_there(golden: Golden) -> None:
    s, t = golden.student, golden.teacher
    assert torch.allclose(KDLoss()(s, t), 16 * kl_loss(s, t, temperature=4.0))


def test_a_mean_over_samples_not_over_classes(golden: Golden) -> None:
    s, t = golden.student, golden.teacher
    single = torch.stack([kd_loss(s[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert torch.allclose(kd_loss(s, t), single.mean())


def test_a_high_temperature_matches_centred_logits(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 8, 10, generator=rng, dtype=torch.float64)
    gap = student - teacher
    gap = gap - gap.mean(-1, keepdim=True)
    expected = gap.square().sum(-1).mean() / (2 * 10)
    assert kd_loss(student, teacher, temperature=1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_temperature_per_sample_scales_each_by_its_own_square(golden: Golden) -> None:
    s, t = golden.student, golden.teacher
    temperature = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    expected = [kd_loss(s[i : i + 1], t[i : i + 1], temperature=float(temperature[i])) for i in range(3)]
    assert torch.allclose(kd_loss(s, t, temperature=temperature, reduction="none"), torch.stack(expected))
