"""Divergences from the k best entries of the teacher, and from entries drawn at random; dense and fused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.errors import InputError
from kdkit.losses import (
    TeacherSamples,
    f_divergence_loss,
    fused_sampled_divergence,
    fused_topk_divergence,
    kl_loss,
    sample_teacher,
    sampled_divergence,
    topk_divergence,
)
from kdkit.losses._generators import generator_rows

RNG = torch.Generator().manual_seed(5)
WIDTH, ENTRIES, K = 6, 31, 4
HIDDEN = torch.randn(3, 7, WIDTH, generator=RNG, dtype=torch.float64)
HEAD = torch.randn(ENTRIES, WIDTH, generator=RNG, dtype=torch.float64)
BIAS = torch.randn(ENTRIES, generator=RNG, dtype=torch.float64)
TEACHER = 2 * torch.randn(3, 7, ENTRIES, generator=RNG, dtype=torch.float64)
LABELS = torch.randint(ENTRIES, (3, 7), generator=RNG).masked_fill(torch.rand(3, 7, generator=RNG) < 0.2, -100)
MASK = torch.rand(3, 7, generator=RNG) > 0.3
LOGITS = HIDDEN @ HEAD.T + BIAS
BEST = TEACHER.log_softmax(-1).topk(K)
CASES = [
    *[("bucket", f) for f in ("kl", "reverse_kl", "js", "skew_kl", "hellinger")],
    *[("renormalise", f) for f in ("kl", "reverse_kl", "total_variation")],
    *[("teacher", f) for f in ("kl", "skew_kl")],
    ("none", "kl"),
]


def expected(logits: Tensor, rest: str, f: str, temperature: float = 1.0) -> Tensor:
    """By the definition, per position."""
    log_q, log_p = (logits / temperature).log_softmax(-1), BEST.values
    own = log_q.gather(-1, BEST.indices)
    left = torch.log1p(-own.exp().sum(-1, keepdim=True))
    if rest == "none":
        return (log_p.exp() * (log_p - own)).sum(-1)
    if rest == "bucket":
        pair = torch.cat([log_p, torch.log1p(-log_p.exp().sum(-1, keepdim=True))], -1), torch.cat([own, left], -1)
    elif rest == "renormalise":
        pair = log_p.log_softmax(-1), own.log_softmax(-1)
    else:
        nothing = torch.full_like(left, -math.inf)
        pair = torch.cat([log_p.log_softmax(-1), nothing], -1), torch.cat([own, left], -1)
    return generator_rows(f, None)(*pair)


def same(value: Tensor, other: Tensor, *sources: Tensor) -> None:
    upstream = torch.linspace(0.5, 1.5, value.numel()).double().view(value.shape)
    assert torch.allclose(value, other)
    slopes = [torch.autograd.grad(each, sources, upstream, retain_graph=True) for each in (value, other)]
    for own, slope in zip(*slopes, strict=True):
        assert torch.allclose(own, slope, atol=1e-12)


@pytest.mark.parametrize(("rest", "f"), CASES)
def test_it_is_what_the_definition_says(rest: str, f: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    options: dict[str, Any] = {"rest": rest, "divergence": f, "temperature": 2.0, "mask": MASK}
    values = expected(logits, rest, f, 2.0) * MASK
    same(topk_divergence(logits, BEST.values, BEST.indices, **options, reduction="none"), values, logits)
    same(topk_divergence(logits, BEST.values, BEST.indices, **options), values.sum() / MASK.sum(), logits)


@pytest.mark.parametrize(("rest", "f"), CASES)
@pytest.mark.parametrize("more", [{}, {"softcap": 4.0, "logit_scale": 0.5}], ids=["plain", "capped"])
def test_fused_equals_dense(rest: str, f: str, more: dict[str, float]) -> None:
    hidden, head, bias = (each.clone().requires_grad_() for each in (HIDDEN, HEAD, BIAS))
    logits = more.get("logit_scale", 1.0) * (hidden @ head.T + bias)
    logits = 4 * torch.tanh(logits / 4) if more else logits
    options: dict[str, Any] = {"rest": rest, "divergence": f, "temperature": 2.0, "mask": MASK, "reduction": "none"}
    dense = topk_divergence(logits, BEST.values, BEST.indices, **options)
    fused = fused_topk_divergence(
        hidden, head, BEST.values, BEST.indices, **options, **more, student_bias=bias, chunk_size=5
    )
    same(fused, dense, hidden, head, bias)
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="none").view(3, 7)
    both = fused_topk_divergence(
        hidden, head, BEST.values, BEST.indices, LABELS, **options, **more, student_bias=bias, ce_weight=0.5
    )
    same(both, torch.where(LABELS != -100, dense + 0.5 * ce * MASK, 0.0), hidden, head, bias)


def test_the_bucket_is_a_lower_bound_that_all_entries_reach() -> None:
    full = kl_loss(LOGITS, TEACHER, reduction="none")
    previous = torch.zeros_like(full)
    for k in (1, 4, 16):
        values = topk_divergence(LOGITS, *TEACHER.log_softmax(-1).topk(k), reduction="none")
        assert bool((values >= previous - 1e-12).all())
        assert bool((values <= full + 1e-12).all())
        previous = values
    everything = TEACHER.log_softmax(-1).topk(ENTRIES)
    for f in ("kl", "js"):
        value = topk_divergence(LOGITS, *everything, divergence=f)
        assert torch.allclose(value, f_divergence_loss(LOGITS, TEACHER, f=f))
    assert topk_divergence(TEACHER, *BEST).abs().item() < 1e-12


def test_a_mass_that_rounds_to_one_is_finite() -> None:
    sharp = torch.full((2, 9), -60.0)
    sharp[:, 0] = 0.0
    log_probs, index = sharp.log_softmax(-1).topk(2)
    for student in (sharp, torch.zeros(2, 9)):
        logits = student.clone().requires_grad_()
        for rest in ("bucket", "teacher", "renormalise", "none"):
            value = topk_divergence(logits, log_probs, index, rest=rest)
            assert bool(value.isfinite())
            assert bool(torch.autograd.grad(value, logits)[0].isfinite().all())


def test_nothing_counts() -> None:
    logits, none = LOGITS.clone().requires_grad_(), torch.zeros(3, 7, dtype=torch.bool)
    value = topk_divergence(logits, *BEST, mask=none)
    assert value.item() == 0
    assert bool((torch.autograd.grad(value, logits)[0] == 0).all())


def test_finite_differences() -> None:
    logits = LOGITS[0, :2].clone().requires_grad_()
    values, index = BEST.values[0, :2], BEST.indices[0, :2]
    assert torch.autograd.gradcheck(lambda z: topk_divergence(z, values, index, divergence="js"), logits)
    assert torch.autograd.gradgradcheck(lambda z: topk_divergence(z, values, index), logits)


# ---- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proposal", [1.0, 1.5])
def test_samples_estimate_without_bias(proposal: float) -> None:
    """Mean of many draws against value and gradient of the full divergence, within four standard errors."""
    logits, rng = LOGITS[0].clone().requires_grad_(), torch.Generator().manual_seed(2)
    full = kl_loss(logits, TEACHER[0], temperature=2.0, reduction="sum")
    slope = torch.autograd.grad(full, logits)[0]
    draws = []
    for _ in range(300):
        samples = sample_teacher(TEACHER[0], 8, temperature=2.0, proposal_temperature=proposal, generator=rng)
        value = sampled_divergence(logits, samples, temperature=2.0, reduction="sum")
        draws.append(torch.cat([value.detach()[None], torch.autograd.grad(value, logits)[0].flatten()]))
    every, target = torch.stack(draws), torch.cat([full.detach()[None], slope.flatten()])
    error = every.std(0) / math.sqrt(len(every))
    assert bool(((every.mean(0) - target).abs() <= 4.5 * error + 1e-9).all())


def test_every_entry_once_is_the_whole_divergence() -> None:
    log_p = TEACHER.log_softmax(-1)
    index = torch.arange(ENTRIES).expand(3, 7, -1)
    samples = TeacherSamples(index, log_p, log_p.exp())
    logits = LOGITS.clone().requires_grad_()
    same(sampled_divergence(logits, samples, mask=MASK), kl_loss(logits, TEACHER, mask=MASK), logits)


def test_fused_samples_equal_dense_ones() -> None:
    hidden, head, bias = (each.clone().requires_grad_() for each in (HIDDEN, HEAD, BIAS))
    samples = sample_teacher(TEACHER, 6, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"temperature": 1.5, "mask": MASK, "reduction": "none"}
    dense = sampled_divergence(hidden @ head.T + bias, samples, **options)
    same(fused_sampled_divergence(hidden, head, samples, student_bias=bias, **options), dense, hidden, head, bias)


def test_the_draws_of_a_seed_are_the_same() -> None:
    first, second = (sample_teacher(TEACHER, 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.allclose(first.weights, torch.full_like(first.weights, 0.2))
    assert sample_teacher(TEACHER[:0], 5).ids.shape == (0, 7, 5)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"teacher_index": torch.zeros(3, 7, 4)}, r"teacher_index must be int64 of shape \[3, 7, 4\]"),
        ({"teacher_index": torch.zeros(3, 7, 4, dtype=torch.long)}, "teacher_index must be free of repetition"),
        ({"teacher_index": torch.arange(28, 32).expand(3, 7, 4)}, r"teacher_index must be in \[0, 31\), got 31"),
        ({"teacher_log_probs": torch.zeros(3, 7, 4)}, "teacher_log_probs must be of probabilities .+ got 4.0"),
        ({"teacher_log_probs": torch.zeros(3, 4)}, r"teacher_log_probs must be float of shape \[3, 7, 'k'\]"),
        ({"rest": "tail"}, "rest must be one of 'bucket', 'renormalise', 'teacher', 'none', got 'tail'"),
        ({"rest": "none", "divergence": "js"}, "divergence must be 'kl' with rest='none', got 'js'"),
        ({"mask": torch.ones(3, 7)}, r"mask must be bool of shape \[3, 7\]"),
        ({"temperature": -1.0}, "temperature must be a positive number"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(changed: dict[str, Any], pattern: str) -> None:
    given = {"teacher_log_probs": BEST.values, "teacher_index": BEST.indices} | changed
    with pytest.raises(InputError, match=rf"^topk_divergence: {pattern}"):
        topk_divergence(LOGITS, **given)
    with pytest.raises(InputError, match=rf"^fused_topk_divergence: {pattern}"):
        fused_topk_divergence(HIDDEN, HEAD, **given)


def test_wrong_samples_are_refused() -> None:
    with pytest.raises(InputError, match="sample_teacher: samples must be an integer of at least 1, got 0"):
        sample_teacher(TEACHER, 0)
    samples = sample_teacher(TEACHER, 2)._replace(weights=torch.ones(3, 7))
    with pytest.raises(InputError, match=r"sampled_divergence: samples.weights must be float of shape \[3, 7, 2\]"):
        sampled_divergence(LOGITS, samples)
