"""Learning-rate schedules per optimizer step: ``f(optimizer, total_steps, ...) -> LRScheduler``.

Any scheduler of torch or timm works as well, by ``_target_``; these cover the recipes of the literature with spans
given as shares of the training, so that a shorter run keeps its shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kdkit.errors import InputError

__all__ = ["constant", "cosine", "linear", "multistep"]


def _warmup(step: int, steps: int) -> float:
    return min((step + 1) / steps, 1.0) if steps > 0 else 1.0


def _warmup_steps(owner: str, warmup: float, total_steps: int) -> int:
    if warmup < 0 or (warmup >= 1 and int(warmup) != warmup):
        raise InputError(f"{owner}: warmup must be a share in [0, 1) or a whole number of steps, got {warmup}")
    return round(warmup * total_steps) if warmup < 1 else int(warmup)


def constant(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0) -> LambdaLR:
    """The base learning rate throughout, after a linear warm-up.

    Args:
        optimizer: whose parameter groups carry the base rates.
        total_steps: optimizer steps in the whole training.
        warmup: share of ``total_steps`` below 1, or a number of steps.
    """
    steps = _warmup_steps("constant", warmup, total_steps)
    return LambdaLR(optimizer, lambda step: _warmup(step, steps))


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0, min_factor: float = 0.0) -> LambdaLR:
    """Half a cosine from the base rate down to ``min_factor`` times it, after a linear warm-up.

    Args:
        optimizer: whose parameter groups carry the base rates.
        total_steps: optimizer steps in the whole training.
        warmup: share of ``total_steps`` below 1, or a number of steps.
        min_factor: what is left of the base rate at the end, 0 to 1.
    """
    steps = _warmup_steps("cosine", warmup, total_steps)
    if not 0.0 <= min_factor <= 1.0:
        raise InputError(f"cosine: min_factor must lie in [0, 1], got {min_factor}")

    def factor(step: int) -> float:
        if step < steps:
            return _warmup(step, steps)
        done = min((step - steps) / max(total_steps - steps, 1), 1.0)
        return min_factor + (1.0 - min_factor) * 0.5 * (1.0 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def linear(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0, min_factor: float = 0.0) -> LambdaLR:
    """A straight line from the base rate down to ``min_factor`` times it, after a linear warm-up.

    Args:
        optimizer: whose parameter groups carry the base rates.
        total_steps: optimizer steps in the whole training.
        warmup: share of ``total_steps`` below 1, or a number of steps.
        min_factor: what is left of the base rate at the end, 0 to 1.
    """
    steps = _warmup_steps("linear", warmup, total_steps)
    if not 0.0 <= min_factor <= 1.0:
        raise InputError(f"linear: min_factor must lie in [0, 1], got {min_factor}")

    def factor(step: int) -> float:
        if step < steps:
            return _warmup(step, steps)
        done = min((step - steps) / max(total_steps - steps, 1), 1.0)
        return 1.0 - (1.0 - min_factor) * done

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    *,
    milestones: Sequence[float] = (0.625, 0.75, 0.875),
    gamma: float = 0.1,
    warmup: float = 0.0,
) -> LambdaLR:
    """The base rate times ``gamma`` at each milestone.

    Args:
        optimizer: whose parameter groups carry the base rates.
        total_steps: optimizer steps in the whole training.
        milestones: rising shares of ``total_steps`` in (0, 1). The default is the CIFAR-100 recipe of the
            distillation literature, epochs 150, 180 and 210 of 240.
        gamma: factor per milestone.
        warmup: share of ``total_steps`` below 1, or a number of steps.
    """
    steps = _warmup_steps("multistep", warmup, total_steps)
    if any(not 0.0 < milestone < 1.0 for milestone in milestones):
        raise InputError(f"multistep: milestones must be shares of the training in (0, 1), got {list(milestones)}")
    edges = [round(milestone * total_steps) for milestone in milestones]
    return LambdaLR(optimizer, lambda step: _warmup(step, steps) * gamma ** sum(step >= edge for edge in edges))
