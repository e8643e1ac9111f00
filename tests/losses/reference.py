"""Plain loops over Python floats: slow, obvious and written without looking at the library."""

from __future__ import annotations

import math

from torch import Tensor


def law(logits: Tensor, temperature: float = 1.0) -> list[float]:
    """Softmax of one row."""
    scaled = [float(z) / temperature for z in logits]
    top = max(scaled)
    weights = [math.exp(z - top) for z in scaled]
    return [weight / sum(weights) for weight in weights]


def kl(p: list[float], q: list[float]) -> float:
    """KL(p || q) with 0 log 0 = 0 and log 1/0 = inf."""
    return sum(0.0 if a == 0 else math.inf if b == 0 else a * math.log(a / b) for a, b in zip(p, q, strict=True))


def entropy(p: list[float]) -> float:
    """In nats."""
    return -sum(a * math.log(a) for a in p if a > 0)


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)
