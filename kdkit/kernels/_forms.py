"""Divergences entry by entry: a value :math:`v` and its derivative :math:`w` with respect to :math:`\\log q`.

With :math:`q = \\mathrm{softmax}(z)` and :math:`\\ell = \\sum_c v_c` the gradient is
:math:`\\partial \\ell / \\partial z = w - q \\sum_c w_c`. :mod:`kdkit.kernels._triton_rows` has the same in Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KINDS", "TINY", "terms"]

KINDS = {
    name: number
    for number, name in enumerate(
        ("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "total_variation", "hellinger", "jeffreys")
    )
}
"""Name -> number in the Triton kernel."""

TINY = 1e-38


def _weighted(law: Tensor, log: Tensor) -> Tensor:
    return torch.where(law > 0, law * log, 0.0)


def terms(name: str, parameter: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """``v`` and ``w`` of each entry; 0 where it is weighted by a probability of 0."""
    p, q = log_p.exp(), log_q.exp()
    if name == "kl":
        return _weighted(p, log_p - log_q), -p
    if name == "reverse_kl":
        back = _weighted(q, log_q - log_p)
        return back, back + q
    if name == "jeffreys":
        back = _weighted(q, log_q - log_p)
        return _weighted(p, log_p - log_q) + back, back + q - p
    if name == "total_variation":
        return (p - q).abs() / 2, torch.sign(q - p) * q / 2
    if name == "hellinger":
        roots = p.sqrt(), q.sqrt()
        return (roots[0] - roots[1]).square() / 2, (q - roots[0] * roots[1]) / 2
    share = 1 - parameter if name == "skew_reverse_kl" else parameter
    mixture = (share * p + (1 - share) * q).clamp(min=TINY)
    log_m = mixture.log()
    if name == "skew_kl":
        return _weighted(p, log_p - log_m), -(1 - share) * p * (q / mixture)
    ahead = _weighted(q, log_q - log_m)
    if name == "skew_reverse_kl":
        return ahead, ahead + share * q * (p / mixture)
    return share * _weighted(p, log_p - log_m) + (1 - share) * ahead, (1 - share) * ahead
