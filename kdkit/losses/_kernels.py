"""Divergences of two laws per row with their gradients in closed form, computed in place on scratch.

A kernel is the fast form of a formula ``rows(log_p, log_q)``: with :math:`q = \\mathrm{softmax}(z)`, a divergence
:math:`\\ell` whose derivative with respect to :math:`\\log q`, all entries taken as free, is :math:`w` has

.. math:: \\frac{\\partial \\ell}{\\partial z} = w - q \\sum_c w_c

The logarithms of a block may be to base 2, whose exponential is the quickest there is on a CPU; ``unit`` is what one of
them is worth in nats. Terms weighted by a probability of 0 are 0, as in :mod:`kdkit.losses._ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Form",
    "Kernel",
    "Laws",
    "Result",
    "balanced_kl",
    "form_of",
    "forward_kl",
    "hellinger",
    "jensen_shannon",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "weighted_kl",
]


@dataclass(slots=True)
class Laws:
    """The laws of teacher, ``p``, and student, ``q``, for the rows of a block ``[n, C]``; a kernel may overwrite all.

    Attributes:
        log_p, p, log_q, q: probabilities and their logarithms, which count from ``1 / lift``.
        lift: per row ``[n, 1]``, or ``None`` for 1. A power of two that takes the logarithms near 0, where they have
            more digits; no kernel depends on it, as they use nothing but differences of logarithms.
        spare: more room of the same shape; anything may stand there.
        unit: nats per unit of the logarithms: 1, or log 2.
        learning: whether a gradient is asked for.
        lost: per row ``[n]``, finite, or NaN where there is no law. ``None``: the caller looks at the values and
            discards those that are not finite, so that probabilities of 0 need no care.
    """

    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor
    lift: Tensor | None
    spare: Tensor | None
    unit: float
    learning: bool
    lost: Tensor | None

    def expect(self, law: Tensor, values: Tensor) -> Tensor:
        """``sum_c law_c values_c`` of each row, leaving the products in ``values``; 0 times infinity is 0."""
        values.mul_(law)
        return self.total(values if self.lost is None else values.nan_to_num_(0.0, math.inf, -math.inf))

    def total(self, values: Tensor) -> Tensor:
        """The sum of each row; NaN where there is no law."""
        total = values.sum(dim=-1)
        return total if self.lost is None else total.add_(self.lost, alpha=0.0)

    def free(self, weights: Tensor) -> Tensor:
        """``w - q sum_c w_c`` in place of ``w``."""
        return weights.addcmul_(self.q, self.total(weights).unsqueeze(-1), value=-1)

    def mixture(self, weight: float) -> Tensor:
        """``weight * p + (1 - weight) * q`` in the spare room, bounded below so that its logarithm is finite."""
        mixed = torch.lerp(self.q, self.p, weight, out=self.spare)
        return mixed.clamp_(min=torch.finfo(mixed.dtype).tiny)

    def log_(self, law: Tensor) -> Tensor:
        """The logarithm as in ``log_p``, in place."""
        if self.lift is not None:
            law.mul_(self.lift)
        return law.log_() if self.unit == 1.0 else law.log2_()


Result = tuple[Tensor, float, Tensor, float]
"""Values ``[n]`` and a number to multiply them by; the gradient with respect to the student's logits ``[n, C]`` (if
``laws.learning``, else anything) and a number to multiply it by."""

Kernel = Callable[[Laws], Result]


class Form(NamedTuple):
    """A divergence by name, for implementations other than these: ``scale`` times that of :mod:`kdkit.kernels`."""

    name: str
    parameter: float = 0.0
    scale: float = 1.0


def form_of(kernel: Kernel | None) -> Form | None:
    """What a kernel computes, where it has said so."""
    return getattr(kernel, "form", None)


def _is(name: str, parameter: float = 0.0, scale: float = 1.0) -> Callable[[Kernel], Kernel]:
    """Say what a kernel computes."""

    def mark(kernel: Kernel) -> Kernel:
        kernel.form = Form(name, parameter, scale)  # type: ignore[attr-defined]
        return kernel

    return mark


@_is("kl")
def forward_kl(laws: Laws) -> Result:
    """``KL(p || q)``; gradient ``q - p``."""
    values = laws.expect(laws.p, laws.log_p.sub_(laws.log_q))
    return values, laws.unit, laws.q.sub_(laws.p) if laws.learning else laws.q, 1.0


@_is("reverse_kl")
def reverse_kl(laws: Laws) -> Result:
    """``KL(q || p)``; gradient ``q (log q - log p - value)``."""
    terms = laws.log_q.sub_(laws.log_p)
    values = laws.expect(laws.q, terms)
    if laws.learning:
        terms.addcmul_(laws.q, values.unsqueeze(-1), value=-1)
    return values, laws.unit, terms, laws.unit


def _two_way(laws: Laws, forward: float | Tensor, reverse: float | Tensor) -> Result:
    """``forward * KL(p || q) + reverse * KL(q || p)``, with weights per row ``[n]`` or for all."""
    ratio = torch.sub(laws.log_p, laws.log_q, out=laws.spare)
    torch.neg(ratio, out=laws.log_q)
    ahead, back = laws.expect(laws.p, ratio), laws.expect(laws.q, laws.log_q)
    values = forward * ahead + reverse * back
    if not laws.learning:
        return values, laws.unit, ratio, 1.0
    of_terms, of_q, of_p = reverse, forward / laws.unit - reverse * back, forward / -laws.unit
    terms = laws.log_q.mul_(of_terms if isinstance(of_terms, float) else of_terms.unsqueeze(-1))
    terms.addcmul_(laws.q, of_q.unsqueeze(-1))
    if isinstance(of_p, float):
        return values, laws.unit, terms.add_(laws.p, alpha=of_p), laws.unit
    return values, laws.unit, terms.addcmul_(laws.p, of_p.unsqueeze(-1)), laws.unit


def weighted_kl(forward: float, reverse: float) -> Kernel:
    """``forward * KL(p || q) + reverse * KL(q || p)``."""
    return lambda laws: _two_way(laws, float(forward), float(reverse))


def balanced_kl(weights: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Kernel:
    """The same with the weights that ``weights(gap)`` gives each row; ``gap`` is ``H(p) - H(q)`` in nats, ``[n]``."""

    def kernel(laws: Laws) -> Result:
        entropies = []
        for law, log in ((laws.p, laws.log_p), (laws.q, laws.log_q)):
            terms = torch.mul(law, log, out=laws.spare)
            entropies.append((terms if laws.lost is None else terms.nan_to_num_(0.0)).sum(dim=-1))
        gap = (entropies[1] - entropies[0]).mul_(laws.unit)
        return _two_way(laws, *weights(gap))

    return kernel


def jensen_shannon(beta: float, scale: float = 1.0) -> Kernel:
    """``scale (beta KL(p || m) + (1 - beta) KL(q || m))`` with ``m = beta p + (1 - beta) q``, ``beta`` in (0, 1);
    gradient ``scale (1 - beta) q (log q - log m - KL(q || m))``."""

    @_is("js", beta, scale)
    def kernel(laws: Laws) -> Result:
        log_m = laws.log_(laws.mixture(beta))
        of_p = laws.expect(laws.p, laws.log_p.sub_(log_m))
        terms = laws.log_q.sub_(log_m)
        of_q = laws.expect(laws.q, terms)
        if laws.learning:
            terms.addcmul_(laws.q, of_q.unsqueeze(-1), value=-1)
        values = (beta * of_p).add_(of_q, alpha=1 - beta)
        return values, scale * laws.unit, terms, scale * (1 - beta) * laws.unit

    return kernel


def skew_kl(alpha: float) -> Kernel:
    """``KL(p || m)`` with ``m = alpha p + (1 - alpha) q``, ``alpha`` in (0, 1); ``w = -(1 - alpha) p q / m``."""

    @_is("skew_kl", alpha)
    def kernel(laws: Laws) -> Result:
        mixture = laws.mixture(alpha)
        share = torch.div(laws.q, mixture, out=laws.log_q).mul_(laws.p) if laws.learning else laws.log_q
        values = laws.expect(laws.p, laws.log_p.sub_(laws.log_(mixture)))
        return values, laws.unit, laws.free(share) if laws.learning else share, alpha - 1

    return kernel


def skew_reverse_kl(alpha: float) -> Kernel:
    """``KL(q || m)`` with ``m = alpha q + (1 - alpha) p``, ``alpha`` in (0, 1); ``w = q (log q - log m + (1 - alpha) p
    / m)``."""

    @_is("skew_reverse_kl", alpha)
    def kernel(laws: Laws) -> Result:
        mixture = laws.mixture(1 - alpha)
        share = torch.div(laws.p, mixture, out=laws.log_p).mul_(laws.q)
        terms = laws.log_q.sub_(laws.log_(mixture))
        values = laws.expect(laws.q, terms)
        if laws.learning:
            laws.free(terms.add_(share, alpha=(1 - alpha) / laws.unit))
        return values, laws.unit, terms, laws.unit

    return kernel


@_is("total_variation")
def total_variation(laws: Laws) -> Result:
    """``sum |p - q| / 2``; ``w = sign(q - p) q / 2``."""
    gap = torch.sub(laws.q, laws.p, out=laws.log_p)
    signs = torch.sign(gap, out=laws.log_q)
    values = gap.mul_(signs).sum(dim=-1)
    return values, 0.5, laws.free(signs.mul_(laws.q)) if laws.learning else gap, 0.5


@_is("hellinger")
def hellinger(laws: Laws) -> Result:
    """``sum (sqrt p - sqrt q)^2 / 2``; ``w = (q - sqrt(p q)) / 2``."""
    root = torch.sqrt(laws.q, out=laws.log_q)
    gap = torch.sub(root, laws.p.sqrt_(), out=laws.log_p)
    values = torch.mul(gap, gap, out=laws.p).sum(dim=-1)
    return values, 0.5, laws.free(gap.mul_(root)) if laws.learning else gap, 0.5
