"""The pass that computes value and gradient at once, against the formula in float64, where the two could part."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdkit.losses import (
    bdkd_loss,
    dkd_loss,
    kd_loss,
    kl_loss,
    mft_loss,
    nkd_loss,
    renyi_loss,
    saf_loss,
    total_variation_loss,
    wsld_loss,
)

LABELS = torch.zeros(8, dtype=torch.long)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "kl": kl_loss,
    "kd": kd_loss,
    "dkd": lambda s, t, **options: dkd_loss(s, t, LABELS, **options),
    "nkd": lambda s, t, **options: nkd_loss(s, t, LABELS, **options),
    "mft": lambda s, t, **options: mft_loss(s, t, LABELS, **options),
    "renyi": renyi_loss,
    "wsld": lambda s, t, **options: wsld_loss(s, t, LABELS, **options),
    "saf": saf_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (8,)])
def test_a_temperature_in_another_dtype_is_taken_as_it_is(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], rng: torch.Generator
) -> None:
    student, teacher = 3 * torch.randn(2, 8, 10, generator=rng, dtype=torch.float64)
    temperature = torch.full(shape, 2.296875, dtype=dtype)
    for wide in (torch.float32, torch.float64):
        values = [LOSSES[name](student.to(wide), teacher.to(wide), temperature=one) for one in (temperature, 2.296875)]
        torch.testing.assert_close(*values, rtol=1e-5 if wide == torch.float32 else 1e-11, atol=0.0)


def test_the_square_of_a_half_precision_temperature_does_not_overflow(rng: torch.Generator) -> None:
    student, teacher = (3 * torch.randn(2, 8, 10, generator=rng)).half()
    assert kd_loss(student, teacher, temperature=torch.full((8,), 300.0, dtype=torch.half)).isfinite()


def test_a_temperature_that_is_not_finite_is_refused(rng: torch.Generator) -> None:
    logits = torch.randn(8, 10, generator=rng)
    with pytest.raises(ValueError, match="positive everywhere and finite"):
        kl_loss(logits, logits, temperature=torch.tensor(math.inf))


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e3, 1e4])
def test_the_label_term_of_nkd_far_from_zero(offset: float) -> None:
    student = torch.tensor([[12.0, 0.0, 0.0]]) + offset
    options = {"temperature": 2.0, "gamma": 0.0}
    student.requires_grad_()
    value = nkd_loss(student, torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([0]), **options)  # type: ignore[arg-type]
    value.backward()
    p = torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64).softmax(0)[0]
    log_q = torch.tensor([12.0, 0.0, 0.0], dtype=torch.float64).log_softmax(0)
    expected = p * (log_q.exp() - torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(value.double(), -p * log_q[0], rtol=2e-2, atol=0.0)
    assert student.grad is not None
    torch.testing.assert_close(student.grad[0].double(), expected, rtol=2e-2, atol=0.0)
    assert abs(float(student.grad.double().sum())) < 1e-6


@pytest.mark.parametrize("gate", ["hard", "sigmoid"])
def test_a_weight_of_zero_silences_an_infinite_divergence(gate: str) -> None:
    student = torch.tensor([[3.0, 1.0, 2.0, 5.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, 0.0, -math.inf]])
    options = {"weight_high": 1.0, "weight_low": 0.0, "gate": gate, "gate_temperature": 1e-3}
    value = bdkd_loss(student, teacher, **options)  # type: ignore[arg-type]
    value.backward()
    assert student.grad is not None
    torch.testing.assert_close(value, kl_loss(student.detach(), teacher))
    assert student.grad.isfinite().all() and student.grad.any()


@pytest.mark.parametrize("alpha", [1 - 1e-2, 1 - 1e-4, 1 - 1e-6, 1 + 1e-6, 1 + 1e-4, 1 + 1e-2, 0.95, 1.05])
def test_renyi_near_the_order_of_kl(alpha: float, rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 4, 50, generator=rng)
    exact = renyi_loss(student.double(), teacher.double(), alpha=alpha)
    torch.testing.assert_close(renyi_loss(student, teacher, alpha=alpha).double(), exact, rtol=1e-5, atol=0.0)
    assert abs(float(renyi_loss(student, student, alpha=alpha))) < 1e-6
    far = 1e4 * student
    assert renyi_loss(far, teacher, alpha=alpha).isfinite()


def test_a_mask_that_changed_before_backward_is_noticed(rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 4, 5, generator=rng)
    student.requires_grad_()
    mask = torch.tensor([True, True, False, True])
    value = kl_loss(student, teacher, mask=mask, reduction="none")
    mask.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


@pytest.mark.parametrize("name", ["dkd", "nkd", "mft", "kd", "wsld"])
def test_vmap_with_labels_and_temperatures(name: str, rng: torch.Generator) -> None:
    student, teacher = torch.randn(2, 3, 8, 10, generator=rng)
    temperatures = torch.tensor([1.0, 2.0, 3.0])

    def one(s: Tensor, t: Tensor, cool: Tensor) -> Tensor:
        return LOSSES[name](s, t, temperature=cool)

    mapped = torch.func.vmap(torch.func.grad(one))(student, teacher, temperatures)
    for place, cool in enumerate([1.0, 2.0, 3.0]):
        alone = student[place].clone().requires_grad_()
        (expected,) = torch.autograd.grad(LOSSES[name](alone, teacher[place], temperature=cool), alone)
        torch.testing.assert_close(mapped[place], expected, rtol=1e-4, atol=1e-6)


def test_equal_laws_are_equal_to_the_last_bit_in_every_block(rng: torch.Generator) -> None:
    student = torch.randn(300, 1003, generator=rng, requires_grad=True)
    total_variation_loss(student, student.detach().clone(), reduction="sum").backward()
    assert student.grad is not None and not student.grad.any()
