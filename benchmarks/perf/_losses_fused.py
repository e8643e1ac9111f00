"""Divergences from hidden states and heads, a quarter of the positions masked; memory counts the gradients too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.perf._cases import Cases, Maker, Step, generator
from benchmarks.perf._losses_dense import forward_rows, js_rows, labels_of, mean, torchtune_module

__all__ = ["CASES", "SIZES", "Inputs", "inputs", "step_of"]

SIZES = {"2048 x 32000": (2048, 32000, 512, 1024), "1024 x 151936": (1024, 151936, 256, 512)}
"""Tokens, vocabulary, width of the student and of the teacher."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``loss(student_hidden, student_head, teacher_hidden, teacher_head, mask)``: the mean over what counts."""


def inputs(size: str, masked: float = 0.25) -> Inputs:
    """Hidden states and heads whose logits have a standard deviation of 2, and a mask."""
    tokens, vocabulary, narrow, wide = SIZES[size]
    rng = generator()
    sides = [
        (torch.randn(tokens, width, generator=rng), torch.randn(vocabulary, width, generator=rng) * 2 / width**0.5)
        for width in (narrow, wide)
    ]
    return (*sides[0], *sides[1], torch.rand(tokens, generator=rng) >= masked)


def step_of(loss: Loss, given: Inputs, compared: bool = True) -> Step:
    """Forward and backward, gradients for the student's hidden states and head."""
    hidden, head = (each.requires_grad_() for each in given[:2])

    def step() -> float | None:
        value = loss(hidden, head, *given[2:])
        value.backward()  # type: ignore[no-untyped-call]
        result = value.item()
        hidden.grad = head.grad = None
        return result if compared else None

    return step


def of(load: Callable[[], Loss], size: str, compared: bool = True, masked: float = 0.25) -> Maker:
    """A maker of ``load()`` on inputs of this size."""
    return lambda: step_of(load(), inputs(size, masked), compared)


def ours(divergence: str, **options: Any) -> Callable[[], Loss]:
    """kdkit's."""

    def load() -> Loss:
        from kdkit.losses import fused_linear_divergence

        return lambda x, w, y, u, mask: fused_linear_divergence(x, w, y, u, mask=mask, divergence=divergence, **options)

    return load


# ---- peers ---------------------------------------------------------------------------------------------------------


def liger(beta: float, chunk: int) -> Callable[[], Loss]:
    """Liger-Kernel's, compiled as it is by default; 0 is its forward KL."""

    def load() -> Loss:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=beta, chunk_size=chunk)
        return lambda x, w, y, u, mask: loss(x, w, y, u, labels_of(mask))

    return load


def orda(divergence: str) -> Callable[[], Loss]:
    """orda-kernel's, which falls back to torch without a GPU."""

    def load() -> Loss:
        from orda_kernel import SeparateTeacher, distillation_loss

        def loss(x: Tensor, w: Tensor, y: Tensor, u: Tensor, mask: Tensor) -> Tensor:
            result = distillation_loss(
                x,
                w,
                labels_of(mask),
                SeparateTeacher(y, u),
                student_ce_weight=0.0,
                teacher_ce_weight=0.0,
                kl_weight=1.0,
                kl_divergence=divergence,  # type: ignore[arg-type, unused-ignore]
            )
            value: Tensor = result.loss
            return value

        return loss

    return load


def torchtune_chunked() -> Loss:
    """torchtune's forward KL on eight chunks of logits; it leaves out the teacher's entropy."""
    loss: Any = torchtune_module("ForwardKLWithChunkedOutputLoss")

    def chunked(x: Tensor, w: Tensor, y: Tensor, u: Tensor, mask: Tensor) -> Tensor:
        pieces = [list(logits[None].chunk(8, 1)) for logits in (x @ w.T, y @ u.T)]
        value: Tensor = loss(*pieces, labels_of(mask)[None])
        return value

    return chunked


def trl(beta: float) -> Callable[[], Loss]:
    """TRL's generalised JSD on logits."""

    def load() -> Loss:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from trl.experimental.gkd import GKDTrainer

        return lambda x, w, y, u, mask: GKDTrainer.generalized_jsd_loss(
            (x @ w.T)[None], (y @ u.T)[None], labels_of(mask)[None], beta=beta
        )

    return load


Rows = Callable[[Tensor, Tensor], Tensor]


def plain(rows: Rows) -> Callable[[], Loss]:
    """All logits, then the mask."""
    return lambda: lambda x, w, y, u, mask: mean(rows(x @ w.T, y @ u.T), mask)


def mask_first(rows: Rows) -> Callable[[], Loss]:
    """The positions that count, then their logits."""
    return lambda: lambda x, w, y, u, mask: rows(F.linear(x[mask], w), F.linear(y[mask], u)).mean()


def products(size: str, masked: float = 0.25) -> Step:
    """The matrix products of the positions that count: two forward, two backward."""
    x, w, y, u, mask = inputs(size, masked)

    def step() -> None:
        own, other = x[mask], y[mask]
        z, _ = own @ w.T, other @ u.T
        _ = z @ w, z.T @ own

    return step


def _case(size: str, divergence: str, beta: float, rows: Rows, **more: Maker) -> dict[str, Maker]:
    return {
        "kdkit": of(ours(divergence), size),
        "plain": of(plain(rows), size),
        "plain, mask first": of(mask_first(rows), size),
        "Liger-Kernel, chunk 128": of(liger(beta, 128), size),
        "Liger-Kernel, chunk 1024": of(liger(beta, 1024), size),
        "TRL, on logits": of(trl(beta), size),
        **more,
        "limit, matrix products": lambda: products(size),
    }


def _forward(size: str) -> dict[str, Maker]:
    return _case(
        size,
        "kl",
        0.0,
        forward_rows,
        **{"torchtune, chunked": of(torchtune_chunked, size, compared=False), "orda-kernel": of(orda("forward"), size)},
    )


CASES: Cases = {f"forward KL, {size}": _forward(size) for size in SIZES} | {
    "JSD, 2048 x 32000": _case("2048 x 32000", "js", 0.5, js_rows),
    "forward KL, masked share, 2048 x 32000": {
        "kdkit": of(ours("kl"), "2048 x 32000", masked=0.0),
        "half masked": of(ours("kl"), "2048 x 32000", compared=False, masked=0.5),
    },
}
