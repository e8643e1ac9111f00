"""The fused loss equals the dense one on logits that exist, in value and gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.errors import InputError
from kdkit.kernels import FusedParts, fused_linear_divergence
from kdkit.kernels._divergences import NAMES

from .heads import Heads

SETTINGS: list[dict[str, Any]] = [
    {},
    {"softcap": 5.0, "logit_scale": 0.7, "ce_weight": 0.3, "temperature": 2.0},
    {"logit_scale": (0.5, 1.5), "ce_weight": 0.3, "temperature": (1.5, 1.0), "weight": 0.5},
    {"softcap": (3.0, None), "ce_weight": 1.0},
]


def reduced(values: Tensor, heads: Heads, reduction: str) -> Tensor:
    if reduction == "none":
        return values
    count = int((heads.mask & (heads.labels != -100)).sum())
    return values.sum() / (count if reduction == "mean" else 1)


def agree(heads: Heads, reduction: str = "mean", uneven: bool = False, **options: Any) -> None:
    """Value and gradients under an upstream gradient that is not 1."""
    common = {"labels": heads.labels, "mask": heads.mask}
    value = fused_linear_divergence(**heads.tensors, **common, reduction=reduction, **options)
    expected = reduced(heads.dense(**common, **options), heads, reduction)
    assert torch.allclose(value, expected, rtol=1e-9, atol=1e-12)
    upstream = torch.linspace(0.5, 2.0, heads.rows).double() if uneven else torch.full_like(expected, 1.7)
    slopes = [torch.autograd.grad(each, heads.learnt, upstream) for each in (value, expected)]
    for own, other in zip(*slopes, strict=True):
        assert torch.allclose(own, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings) or "plain")
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_dense_loss(name: str, settings: dict[str, Any]) -> None:
    heads = Heads()
    agree(heads, divergence=name, **settings)
    agree(heads, "sum", divergence=name, chunk_size=7, **settings)
    agree(heads, "none", uneven=True, divergence=name, chunk_size=1, **settings)


@pytest.mark.parametrize("options", [{"divergence": "js", "beta": 0.1}, {"divergence": "skew_kl", "alpha": 0.0}])
def test_a_parameter_reaches_the_divergence(options: dict[str, Any]) -> None:
    agree(Heads(), **options)


@pytest.mark.parametrize("chunk", [1, 4, 11, 1000])
def test_chunks_that_do_not_divide(chunk: int) -> None:
    agree(Heads(), chunk_size=chunk, ce_weight=0.5)


@pytest.mark.parametrize("learning", [("hidden",), ("head",), ("bias",), ("hidden", "head")])
def test_what_is_frozen_gets_nothing_and_changes_nothing(learning: tuple[str, ...]) -> None:
    agree(Heads(learning=learning), ce_weight=0.5)


def test_no_gradient_reaches_the_teacher() -> None:
    heads = Heads()
    heads.tensors["teacher_head"].requires_grad_()
    fused_linear_divergence(**heads.tensors).backward()
    assert heads.tensors["teacher_head"].grad is None
    assert not fused_linear_divergence(**{name: each.detach() for name, each in heads.tensors.items()}).requires_grad


def test_a_head_tied_to_the_embedding_gets_both_gradients() -> None:
    heads = Heads()
    table, tokens = heads.tensors["student_head"], torch.arange(heads.rows)
    rest = {name: value.detach() for name, value in heads.tensors.items() if not name.startswith("student_")}
    fused_linear_divergence(table[tokens], table, **rest).backward()
    fused, table.grad = table.grad, None
    tied = Heads()
    tied.tensors.update(student_hidden=table[tokens], student_head=table, student_bias=torch.zeros(heads.entries))
    tied.dense().mean().backward()
    assert torch.allclose(fused, table.grad)


def test_micro_batches_add_up() -> None:
    heads = Heads()
    total = fused_linear_divergence(**heads.tensors, reduction="sum")
    whole = torch.autograd.grad(total, heads.learnt)
    for part in (slice(0, 9), slice(9, None)):
        cut = {n: v[part] if n.endswith("hidden") else v for n, v in heads.tensors.items()}
        fused_linear_divergence(**cut, reduction="sum").backward()
    assert all(torch.allclose(each.grad, slope) for each, slope in zip(heads.learnt, whole, strict=True))


def test_positions_in_a_batch_of_text() -> None:
    heads = Heads(rows=24)
    text = {n: v.unflatten(0, (4, 6)) if n.endswith("hidden") else v for n, v in heads.tensors.items()}
    mask = heads.mask.view(4, 6)
    values = fused_linear_divergence(**text, mask=mask, reduction="none")
    assert values.shape == (4, 6)
    assert torch.allclose(values.flatten(), heads.dense(mask=heads.mask))
    shifted = {n: v[:, :-1] if n.endswith("hidden") else v for n, v in text.items()}
    values = fused_linear_divergence(**shifted, mask=mask[:, 1:], reduction="none")
    assert torch.allclose(values, torch.where(mask[:, 1:], heads.dense().view(4, 6)[:, :-1], 0.0))


def test_parts() -> None:
    heads = Heads()
    parts = fused_linear_divergence(**heads.tensors, labels=heads.labels, weight=2.0, ce_weight=0.25, parts=True)
    assert isinstance(parts, FusedParts)
    assert torch.allclose(parts.total, 2 * parts.divergence + 0.25 * parts.cross_entropy)
    assert not parts.divergence.requires_grad
    only = fused_linear_divergence(**heads.tensors, labels=heads.labels, weight=0.0, ce_weight=0.25)
    assert torch.allclose(only, 0.25 * parts.cross_entropy)


# ---- vocabularies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", ["student", "teacher"])
def test_entries_that_one_side_lacks_are_absent_on_both(padded: str) -> None:
    heads, options = Heads(), {"ce_weight": 0.5, "labels": Heads().labels}
    expected = fused_linear_divergence(**heads.tensors, **options)
    slopes = torch.autograd.grad(expected, heads.learnt)
    longer = Heads()
    for name in ("head", "bias"):
        key = f"{padded}_{name}"
        more = torch.cat([longer.tensors[key].detach(), torch.ones_like(longer.tensors[key][:3]).detach()])
        longer.tensors[key] = more.requires_grad_(padded == "student")
    assert torch.equal(fused_linear_divergence(**longer.tensors, **options, vocabulary="shared"), expected)
    value = fused_linear_divergence(**longer.tensors, **options, vocabulary=heads.entries)
    for own, other in zip(torch.autograd.grad(value, longer.learnt), slopes, strict=True):
        assert torch.equal(own[: len(other)], other)
        assert bool((own[len(other) :] == 0).all())
    with pytest.raises(InputError, match=r'teacher_head must be of \d+ entries, as student_head, got .+"shared" keeps'):
        fused_linear_divergence(**longer.tensors, **options)


def test_banned_entries() -> None:
    heads = Heads()
    for side in ("student", "teacher"):
        with torch.no_grad():
            heads.tensors[f"{side}_bias"][3] = -math.inf
    for name in ("kl", "reverse_kl", "js", "skew_kl"):
        value = fused_linear_divergence(**heads.tensors, divergence=name)
        assert torch.allclose(value, heads.dense(divergence=name).mean())
        assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(value, heads.learnt))
    with torch.no_grad():
        heads.tensors["student_bias"][5] = -math.inf
    value = fused_linear_divergence(**heads.tensors)
    assert value.item() == math.inf
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(value, heads.learnt))


# ---- extremes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "skew_kl", "total_variation"])
def test_extreme_logits_are_finite(name: str) -> None:
    heads = Heads(dtype=torch.float32)
    with torch.no_grad():
        for value in heads.tensors.values():
            value.mul_(60.0)
    z = heads.tensors["student_hidden"] @ heads.tensors["student_head"].T
    assert z.abs().max() > 1e4
    value = fused_linear_divergence(**heads.tensors, labels=heads.labels, divergence=name, ce_weight=1.0)
    assert bool(value.isfinite())
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(value, heads.learnt))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(reduction: str) -> None:
    heads = Heads()
    value = fused_linear_divergence(**heads.tensors, mask=torch.zeros(23, dtype=torch.bool), reduction=reduction)
    assert bool((value == 0).all())
    assert all(bool((slope == 0).all()) for slope in torch.autograd.grad(value.sum(), heads.learnt))


def test_masked_rows_may_hold_anything() -> None:
    heads = Heads()
    with torch.no_grad():
        for side in ("student", "teacher"):
            heads.tensors[f"{side}_hidden"][~heads.mask] = math.nan
    value = fused_linear_divergence(**heads.tensors, mask=heads.mask)
    slopes = torch.autograd.grad(value, heads.learnt)
    assert bool(value.isfinite())
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    assert bool((slopes[0][~heads.mask] == 0).all())


def test_equal_networks_are_at_zero() -> None:
    heads = Heads(dtype=torch.float32)
    own = {name: value.detach() for name, value in heads.tensors.items() if name.startswith("student_")}
    same = own | {name.replace("student", "teacher"): value for name, value in own.items()}
    for name in ("kl", "reverse_kl", "js"):
        assert abs(fused_linear_divergence(**same, divergence=name).item()) < 1e-9  # products of two shapes


# ---- precision and memory ------------------------------------------------------------------------------------------


def test_half_precision_is_summed_in_float32() -> None:
    half = Heads(rows=200, dtype=torch.bfloat16)
    wide = Heads(rows=200)
    for name, value in wide.tensors.items():
        value.data.copy_(half.tensors[name].double())
    values = [fused_linear_divergence(**heads.tensors, chunk_size=16) for heads in (half, wide)]
    assert values[0].dtype == torch.float32
    assert math.isclose(values[0].item(), values[1].item(), rel_tol=1e-5)
    for own, other in zip(*(torch.autograd.grad(v, h.learnt) for v, h in zip(values, (half, wide))), strict=True):
        assert own.dtype == torch.bfloat16
        assert torch.allclose(own.double(), other, rtol=5e-3, atol=1e-9)


def test_autocast_changes_nothing() -> None:
    heads = Heads(dtype=torch.float32)
    plain = fused_linear_divergence(**heads.tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fused_linear_divergence(**heads.tensors)
    assert torch.equal(cast, plain)
    cast.backward()
    assert all(each.grad is not None and each.grad.dtype == torch.float32 for each in heads.learnt)


def test_float32_is_as_exact_as_a_part_in_a_million() -> None:
    rng = torch.Generator().manual_seed(0)
    sizes = {
        "student_hidden": (64, 32),
        "student_head": (8000, 32),
        "teacher_hidden": (64, 64),
        "teacher_head": (8000, 64),
    }
    tensors = {name: torch.randn(*shape, generator=rng) * 0.4 for name, shape in sizes.items()}
    for name in ("kl", "reverse_kl", "js", "skew_kl"):
        exact = fused_linear_divergence(**{n: v.double() for n, v in tensors.items()}, divergence=name)
        assert math.isclose(fused_linear_divergence(**tensors, divergence=name).item(), exact.item(), rel_tol=1e-6)


class Largest(TorchDispatchMode):
    """The most bytes of any tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor):
                self.size = max(self.size, each.numel() * each.element_size())
        return result


def test_the_logits_never_exist() -> None:
    heads = Heads(rows=400, entries=300)
    with Largest() as largest:
        fused_linear_divergence(**heads.tensors, labels=heads.labels, ce_weight=1.0, chunk_size=20).backward()
    assert largest.size < 400 * 300 * 8 / 4


# ---- differentiation -----------------------------------------------------------------------------------------------


def test_finite_differences() -> None:
    heads = Heads(rows=5, entries=7, widths=(3, 4))
    labels = torch.tensor([1, 2, -100, 0, 6])
    fixed = {name: value for name, value in heads.tensors.items() if name.startswith("teacher")}

    def loss(*learnt: Tensor) -> Tensor:
        own = dict(zip(("student_hidden", "student_head", "student_bias"), learnt, strict=True))
        return fused_linear_divergence(
            **own, **fixed, labels=labels, divergence="js", ce_weight=0.5, softcap=4.0, temperature=2.0
        )

    assert torch.autograd.gradcheck(loss, heads.learnt)


def test_a_second_backward_and_a_second_derivative() -> None:
    heads = Heads()
    value = fused_linear_divergence(**heads.tensors)
    first = torch.autograd.grad(value, heads.learnt, retain_graph=True)
    kept = [slope.clone() for slope in first]
    first[0].zero_()
    again = torch.autograd.grad(value, heads.learnt, torch.tensor(2.0).double(), retain_graph=True)
    assert all(torch.allclose(2 * a, b) for a, b in zip(kept, again, strict=True))
    slope = torch.autograd.grad(value, heads.learnt, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivative"):
        slope.sum().backward()


def test_inputs_may_change_in_place_after_the_forward_pass() -> None:
    heads = Heads()
    expected = torch.autograd.grad(fused_linear_divergence(**heads.tensors), heads.learnt)
    value = fused_linear_divergence(**heads.tensors)
    with torch.no_grad():
        heads.tensors["student_head"].zero_()
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(value, heads.learnt), expected, strict=True))
    value = fused_linear_divergence(**heads.tensors, reduction="none")
    with torch.no_grad():
        heads.tensors["student_head"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward(torch.arange(23.0).double())


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        (
            {"student_head": torch.zeros(41, 9)},
            r"student_head must be float of shape \[V, 8\], .+, got float32 \[41, 9\]",
        ),
        ({"student_hidden": torch.zeros(23, 8, dtype=torch.long)}, "student_hidden must be float of shape"),
        ({"teacher_hidden": torch.zeros(22, 12)}, r"teacher_hidden must be of the positions of student_hidden, \[23\]"),
        ({"student_bias": torch.zeros(40)}, r"student_bias must be float of shape \[41\]"),
        ({"mask": torch.ones(23)}, r"mask must be bool of shape \[23\]"),
        ({"labels": torch.full((23,), 41)}, r"labels must be in \[0, 41\) or -100"),
        ({"labels": torch.zeros(23, 41)}, r"labels must be int64 of shape \[23\]"),
        ({"ce_weight": 1.0}, "labels must be a tensor of labels, got None; .+ce_weight=0"),
        ({"divergence": "kll"}, "divergence must be one of 'kl', .+got 'kll'; did you mean 'kl'"),
        ({"alpha": 0.1}, "alpha must be None for 'kl', got 0.1; 'alpha', 'skew_kl', 'skew_reverse_kl' take it"),
        ({"divergence": "js", "beta": 1.0}, r"beta must be a number in \(0.0, 1.0\), got 1.0"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"softcap": (1.0, -1.0)}, "softcap must be a positive number, got -1.0"),
        ({"logit_scale": (1.0, 2.0, 3.0)}, r"logit_scale must be one number, or a pair"),
        ({"vocabulary": 42}, r"vocabulary must be 'same', 'shared' or an integer in \[1, 41\], got 42"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
        ({"implementation": "cuda"}, "implementation must be one of 'auto'"),
        ({"reduction": "avg"}, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(changed: dict[str, Any], pattern: str) -> None:
    tensors = {name: value.float() for name, value in Heads().tensors.items()}
    with pytest.raises(InputError, match=rf"^fused_linear_divergence: {pattern}"):
        fused_linear_divergence(**tensors | changed)
