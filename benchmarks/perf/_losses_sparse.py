"""Divergences from the teacher's 64 best entries, on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.perf._cases import Cases, Maker, Step, generator, learning

__all__ = ["CASES"]

TOKENS, VOCABULARY, BEST = 2048, 32000, 64


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """The student's logits; log-probabilities and ids of the teacher's best entries."""
    rng = generator()
    student, teacher = (2 * torch.randn(TOKENS, VOCABULARY, generator=rng) for _ in range(2))
    log_probs, ids = F.log_softmax(teacher, -1).topk(BEST)
    return student, log_probs, ids


def ours(rest: str) -> Maker:
    """kdkit's."""

    def make() -> Step:
        from kdkit.losses import topk_divergence

        student, log_probs, ids = inputs()
        return learning(lambda logits: topk_divergence(logits, log_probs, ids, rest=rest), student)

    return make


def plain(rest: str) -> Maker:
    """The formula on a gathered log-softmax."""

    def make() -> Step:
        student, log_probs, ids = inputs()

        def loss(logits: Tensor) -> Tensor:
            log_q, log_p = F.log_softmax(logits, -1).gather(-1, ids), log_probs
            if rest == "bucket":
                log_p, log_q = (
                    torch.cat([each, torch.log1p(-each.exp().sum(-1, keepdim=True))], -1) for each in (log_p, log_q)
                )
            else:
                log_p = log_p.log_softmax(-1)
            return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

        return learning(loss, student)

    return make


def distillkit(missing: str) -> Maker:
    """DistillKit's sparse KL."""

    def make() -> Step:
        from distillkit.lossfuncs.kl import sparse_kl_div
        from distillkit.missing_probability import MissingProbabilityHandling

        student, log_probs, ids = inputs()
        option = MissingProbabilityHandling[missing]
        return learning(
            lambda logits: sparse_kl_div(logits[None], ids[None], log_probs[None], missing=option) / TOKENS, student
        )

    return make


def limit() -> Step:
    """Read the logits, write a gradient, into memory that is warm."""
    student = inputs()[0]
    gradient = torch.zeros_like(student)

    def step() -> None:
        torch.mul(student, 2.0, out=gradient)

    return step


CASES: Cases = {
    f"{title}, {TOKENS} x {VOCABULARY}, k = {BEST}": {
        "kdkit": ours(rest),
        "plain": plain(rest),
        "DistillKit": distillkit(missing),
        "limit, memory": lambda: limit(),
    }
    for title, rest, missing in (
        ("top-k with a bucket", "bucket", "SYMMETRIC_UNIFORM"),
        ("top-k, teacher renormalised", "teacher", "ZERO"),
    )
}
