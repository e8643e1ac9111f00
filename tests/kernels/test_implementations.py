"""All implementations of the fused loss give one value and one gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.errors import InputError
from kdkit.kernels import _chunked, _whole_tiles, fused_linear_divergence
from kdkit.kernels._divergences import divergence_of
from kdkit.kernels._forms import KINDS, terms

from .heads import Heads

FULL = {"softcap": (5.0, 3.0), "logit_scale": 0.7, "ce_weight": 0.3, "temperature": (2.0, 1.5)}


def compare(implementation: str, name: str, **options: Any) -> None:
    heads = Heads(rows=11, entries=19)
    common: dict[str, Any] = {
        "labels": heads.labels,
        "mask": heads.mask,
        "divergence": name,
        "chunk_size": 4,
        **options,
    }
    values = [fused_linear_divergence(**heads.tensors, **common, implementation=i) for i in ("chunked", implementation)]
    assert torch.allclose(*values, rtol=1e-6)
    for own, other in zip(*(torch.autograd.grad(value, heads.learnt) for value in values), strict=True):
        assert torch.allclose(own, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_the_closed_forms_are_those_of_the_formulas(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(4, 9, generator=rng, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    divergence = divergence_of("test", name, None, None)
    log_q.requires_grad_()
    values = divergence.rows(log_p, log_q)
    expected = torch.autograd.grad(values.sum(), log_q)[0]
    value, slope = terms(name, divergence.parameter or 0.0, log_p, log_q.detach())
    assert torch.allclose(value.sum(-1), values)
    q = log_q.detach().exp()
    difference = slope - expected  # a constant times q does not change the gradient with respect to the logits
    assert torch.allclose(difference / q, (difference / q)[:, :1].expand_as(q))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_compiled_equals_the_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_whole_tiles, "_compiled_rows", lambda: _whole_tiles._plain_rows)
    compare("compiled", name)
    compare("compiled", name, **FULL)


@pytest.mark.slow
def test_compiled_equals_the_chunks() -> None:
    compare("compiled", "js", **FULL)


SCRIPT = """
import torch
from kdkit.kernels._forms import KINDS
from kdkit.kernels._triton_dense import dense
from kdkit.losses._kernels import *
from kdkit.losses._one_pass import DivergenceOf
from kdkit.losses._kernels import form_of
from tests.kernels.test_implementations import FULL, compare

for name in KINDS:
    compare("triton", name)
for name in ("kl", "js"):
    compare("triton", name, **FULL)

kernels = {"kl": forward_kl, "js": jensen_shannon(0.3, 2.0), "skew": skew_reverse_kl(0.1), "tv": total_variation}
mask = torch.tensor([[True, True, False], [True, False, True]])
for kernel in kernels.values():
    student, teacher = (2 * torch.randn(2, 4, 9, dtype=torch.float64)[:, :-1] for _ in range(2))
    for holds in (None, mask):
        if holds is not None:
            student[0, 2] = torch.nan
        for reduction, squared in (("mean", False), ("none", True)):
            task = DivergenceOf("task", lambda p, q: p, kernel, (2.0, 1.5), holds, reduction, squared)
            expected, other = task.compute(student, teacher, True), dense(task, form_of(kernel), student, teacher, True)
            assert torch.allclose(expected[0], other[0], rtol=1e-6)
            assert torch.allclose(expected[1], other[1], rtol=1e-5, atol=1e-8)
half = [side.bfloat16() for side in (student.nan_to_num(), teacher)]
task = DivergenceOf("task", lambda p, q: p, forward_kl, (1.0, 1.0), None, "mean", False)
expected, other = task.compute(*half, True), dense(task, form_of(forward_kl), *half, True)
assert torch.allclose(expected[0], other[0], rtol=1e-5)
assert other[1].dtype == torch.bfloat16
assert torch.allclose(expected[1].float(), other[1].float(), rtol=1e-2, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_triton_equals_the_chunks_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_products_in_bfloat16_with_wide_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of CUDA, with the one operation that a CPU lacks replaced by its definition."""

    def multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        assert left.dtype == right.dtype == torch.bfloat16
        return torch.mm(left.float(), right.float(), out=out)

    half = Heads(rows=60, dtype=torch.bfloat16)
    options: dict[str, Any] = {"logit_scale": 0.5, "chunk_size": 16}
    expected = fused_linear_divergence(**half.tensors, **options)
    slopes = torch.autograd.grad(expected, half.learnt)
    monkeypatch.setattr(_chunked, "multiply", multiply)
    monkeypatch.setattr(_chunked, "_mixed", lambda network: True)
    value = fused_linear_divergence(**half.tensors, **options)
    assert torch.allclose(value, expected, rtol=1e-5)
    for own, other in zip(torch.autograd.grad(value, half.learnt), slopes, strict=True):
        assert float((own - other).float().norm() / other.float().norm()) < 1e-2


def test_what_can_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    heads = Heads()
    with pytest.raises(InputError, match="implementation must be one that runs on cpu, got 'triton'; use 'auto'"):
        fused_linear_divergence(**heads.tensors, implementation="triton")
    with pytest.raises(InputError, match="implementation must be 'auto' or 'chunked', got 'compiled'; others know kl"):
        fused_linear_divergence(**heads.tensors, divergence="pearson", implementation="compiled")
