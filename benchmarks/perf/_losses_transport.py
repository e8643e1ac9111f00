"""Transport and kernel losses beside POT, geomloss and iterations that autograd unrolls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.perf._cases import Cases, Maker, Step, generator, learning

__all__ = ["CASES"]

TEMPERATURE, EPSILON, ITERATIONS = 2.0, 0.1, 20


# ---- inputs --------------------------------------------------------------------------------------------------------


def logits(batch: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits of two networks."""
    rng = generator()
    return 4 * torch.randn(batch, classes, generator=rng), 4 * torch.randn(batch, classes, generator=rng)


def ours(name: str, batch: int, classes: int, **options: Any) -> Maker:
    """A maker for a function of kdkit by its name."""

    def make() -> Step:
        import kdkit.losses

        student, teacher = logits(batch, classes)
        return learning(lambda value: getattr(kdkit.losses, name)(value, teacher, **options), student)

    return make


def theirs(loss: Callable[..., Tensor], batch: int, classes: int, *imported: str, compared: bool = True) -> Maker:
    """A maker for ``loss(student_laws, teacher_laws)``, after the import of what it needs."""

    def make() -> Step:
        for module in imported:
            __import__(module)
        student, teacher = logits(batch, classes)
        laws = torch.softmax(teacher / TEMPERATURE, -1)
        return learning(lambda value: loss(torch.softmax(value / TEMPERATURE, -1), laws), student, compared)

    return make


# ---- one plan per batch --------------------------------------------------------------------------------------------


def absolute(left: Tensor, right: Tensor) -> Tensor:
    """The L1 cost."""
    return torch.cdist(left, right, p=1)


def squared(left: Tensor, right: Tensor) -> Tensor:
    """The squared Euclidean cost."""
    return torch.cdist(left, right).square()


def pot(method: str, cost: Callable[..., Tensor] = absolute) -> Callable[..., Tensor]:
    """``ot.sinkhorn`` on torch tensors, 20 iterations through autograd."""

    def loss(q: Tensor, p: Tensor) -> Tensor:
        import ot

        matrix, weights = cost(q, p), q.new_full((len(q),), 1 / len(q))
        options = {"numItermax": ITERATIONS, "stopThr": 0.0, "warn": False}
        return (ot.sinkhorn(weights, weights, matrix, EPSILON, method=method, **options) * matrix).sum()

    return loss


def unrolled(q: Tensor, p: Tensor) -> Tensor:
    """Two scalings, 20 iterations through autograd."""
    cost = absolute(q, p)
    kernel, v = torch.exp(cost / -EPSILON), q.new_ones(len(p))
    for _ in range(ITERATIONS):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    return (u[:, None] * kernel * v * cost).sum() / len(q)


def normalised(q: Tensor, p: Tensor) -> Tensor:
    """The plan normalised by rows and columns in turn, 20 iterations through autograd, as SinKD does."""
    cost = absolute(q, p)
    plan = torch.exp(cost / -EPSILON)
    for _ in range(ITERATIONS):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum() / len(q)


def geomloss(debias: bool, scaling: float) -> Callable[..., Tensor]:
    """``SamplesLoss`` with the same cost and epsilon; its iterations are those of its annealing."""

    def loss(q: Tensor, p: Tensor) -> Tensor:
        from geomloss import SamplesLoss

        options = {"p": 1, "blur": EPSILON, "scaling": scaling, "debias": debias, "backend": "tensorized"}
        return SamplesLoss("sinkhorn", cost=lambda x, y: torch.cdist(x, y, p=1), **options)(q, p)

    return loss


def _sinkhorn(batch: int, classes: int) -> dict[str, Maker]:
    fixed = {"temperature": TEMPERATURE, "epsilon": EPSILON, "max_iterations": ITERATIONS}
    return {
        "kdkit": ours("sinkhorn_loss", batch, classes, **fixed),
        "kdkit, compiled": ours("sinkhorn_loss", batch, classes, implementation="compiled", **fixed),
        "kdkit, converged to 1e-9": ours("sinkhorn_loss", batch, classes, temperature=TEMPERATURE, epsilon=EPSILON),
        "POT": theirs(pot("sinkhorn"), batch, classes, "ot"),
        "POT log": theirs(pot("sinkhorn_log"), batch, classes, "ot"),
        "geomloss": theirs(geomloss(False, 0.7), batch, classes, "geomloss", compared=False),
        "unrolled": theirs(unrolled, batch, classes),
        "SinKD": theirs(normalised, batch, classes),
    }


# ---- the debiased and the unbalanced one ---------------------------------------------------------------------------


def debiased(q: Tensor, p: Tensor) -> Tensor:
    """Three problems of 50 log-domain iterations through autograd."""

    def minimum(left: Tensor, right: Tensor) -> Tensor:
        cost, size = absolute(left, right), math.log(len(left))
        g = left.new_zeros(len(right))
        for _ in range(50):
            f = -EPSILON * (torch.logsumexp((g - cost) / EPSILON, 1) - size)
            g = -EPSILON * (torch.logsumexp((f[:, None] - cost) / EPSILON, 0) - size)
        return f.mean() + g.mean()

    return minimum(q, p) - (minimum(q, q) + minimum(p, p)) / 2


def pot_unbalanced(q: Tensor, p: Tensor) -> Tensor:
    """``ot.unbalanced`` on torch tensors until its stopping rule, through autograd, and its objective."""
    import ot

    cost, weights = absolute(q, p), q.new_full((len(q),), 1 / len(q))
    options = {"reg_type": "kl", "numItermax": 1000, "stopThr": 1e-7}
    plan = ot.unbalanced.sinkhorn_unbalanced(weights, weights, cost, EPSILON, 1.0, **options)

    def divergence(values: Tensor, reference: Tensor) -> Tensor:
        return (torch.xlogy(values, values / reference) - values + reference).sum()

    margins = divergence(plan.sum(0), weights) + divergence(plan.sum(1), weights)
    return (plan * cost).sum() + EPSILON * divergence(plan, weights[:, None] * weights) + margins


# ---- one plan per sample -------------------------------------------------------------------------------------------


def ground(classes: int) -> Tensor:
    """Distances between random points in eight dimensions, the largest being 1."""
    points = torch.randn(classes, 8, generator=generator(1))
    cost = torch.cdist(points, points)
    return cost / cost.max()


def class_unrolled(q: Tensor, p: Tensor) -> Tensor:
    """Scalings of all samples at once, 100 iterations through autograd in float64."""
    cost = ground(q.shape[1]).double()
    kernel = torch.exp(cost / -EPSILON)
    q, p = q.double(), p.double()
    v = torch.ones_like(p)
    for _ in range(100):
        u = 1 / ((p * v) @ kernel.T)
        v = 1 / ((q * u) @ kernel)
    return EPSILON * ((u.log() * q).sum(1) + (v.log() * p).sum(1)).mean()


def class_pot(q: Tensor, p: Tensor) -> Tensor:
    """A loop over samples, POT's log domain, 100 iterations through autograd."""
    import ot

    cost, values = ground(q.shape[1]), []
    for a, b in zip(q, p, strict=True):
        plan = ot.bregman.sinkhorn_log(a, b, cost, EPSILON, numItermax=100, stopThr=0.0, warn=False)
        values.append((plan * cost).sum() + EPSILON * torch.xlogy(plan, plan / (a[:, None] * b)).sum())
    return torch.stack(values).mean()


def class_ours(batch: int, classes: int) -> Maker:
    """Kdkit's, with the same cost."""
    return ours("class_transport_loss", batch, classes, cost=ground(classes), temperature=TEMPERATURE, debiased=False)


# ---- statistics of pairs -------------------------------------------------------------------------------------------


def plain_energy(q: Tensor, p: Tensor) -> Tensor:
    """Three matrices of distances."""
    return 2 * torch.cdist(q, p).mean() - torch.cdist(q, q).mean() - torch.cdist(p, p).mean()


def plain_mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances of all pooled pairs in float32, as the usual collections of adaptation losses compute them."""
    rows = torch.cat([student, teacher])
    squares = (rows[None] - rows[:, None]).square().sum(2)
    apart = ~torch.eye(len(rows), dtype=torch.bool)
    width = squares.detach()[apart].median()
    kernel = torch.stack([torch.exp(squares / (-2 * m**2 * width)) for m in (0.5, 1.0, 2.0)]).mean(0)
    n = len(student)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


CASES: Cases = {
    "Sinkhorn, L1 cost, 20 iterations, 64 x 100": _sinkhorn(64, 100),
    "Sinkhorn, L1 cost, 20 iterations, 128 x 100": _sinkhorn(128, 100),
    "Sinkhorn, L1 cost, 20 iterations, 512 x 1000": _sinkhorn(512, 1000),
    "Sinkhorn, squared cost, 20 iterations, 512 x 1000": {
        "kdkit": ours("sinkhorn_loss", 512, 1000, cost_power=2.0, temperature=TEMPERATURE, max_iterations=ITERATIONS),
        "POT": theirs(pot("sinkhorn", squared), 512, 1000, "ot"),
    },
    "Sinkhorn divergence, L1 cost, 128 x 100": {
        "kdkit": ours("sinkhorn_divergence_loss", 128, 100, temperature=TEMPERATURE),
        "geomloss": theirs(geomloss(True, 0.7), 128, 100, "geomloss", compared=False),
        "unrolled, 50 iterations": theirs(debiased, 128, 100),
    },
    "Unbalanced Sinkhorn, L1 cost, 128 x 100": {
        "kdkit": ours(
            "sinkhorn_loss", 128, 100, solver="unbalanced", value="regularized", temperature=TEMPERATURE, tolerance=1e-7
        ),
        "POT": theirs(pot_unbalanced, 128, 100, "ot"),
    },
    "Class transport, 128 x 100": {
        "kdkit": class_ours(128, 100),
        "unrolled, 100 iterations": theirs(class_unrolled, 128, 100),
        "POT, a loop over samples": theirs(class_pot, 128, 100, "ot"),
    },
    "Energy distance, 256 x 100": {
        "kdkit": ours("energy_distance_loss", 256, 100, temperature=TEMPERATURE),
        "plain": theirs(plain_energy, 256, 100),
    },
    "MMD, 128 x 512": {
        "kdkit": ours("mmd_loss", 128, 512),
        "plain": lambda: _plain_mmd_step(),
    },
}


def _plain_mmd_step() -> Step:
    student, teacher = logits(128, 512)
    return learning(lambda value: plain_mmd(value, teacher), student)
