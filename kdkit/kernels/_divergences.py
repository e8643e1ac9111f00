"""Divergences by name: the formula of each and, where there is one, its kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdkit.losses._checks import check_between, check_choice, refuse
from kdkit.losses._generators import FAMILIES, GENERATORS, generator_rows
from kdkit.losses._kernels import (
    Kernel,
    forward_kl,
    hellinger,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
    weighted_kl,
)
from kdkit.losses._one_pass import Rows

__all__ = ["NAMES", "Divergence", "divergence_of"]

NAMES = (*GENERATORS, *FAMILIES)
"""The f-divergences of :func:`~kdkit.losses.f_divergence_loss`."""

_KERNELS: dict[str, Kernel] = {
    "kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jeffreys": weighted_kl(1.0, 1.0),
    "total_variation": total_variation,
    "hellinger": hellinger,
}
_FAMILY_KERNELS: dict[str, Callable[[float], Kernel]] = {
    "js": jensen_shannon,
    "skew_kl": lambda alpha: skew_kl(alpha) if alpha else forward_kl,
    "skew_reverse_kl": lambda alpha: skew_reverse_kl(alpha) if alpha else reverse_kl,
}
_OPTION = {"js": "beta", "alpha": "alpha", "skew_kl": "alpha", "skew_reverse_kl": "alpha"}


@dataclass(frozen=True, slots=True)
class Divergence:
    """An f-divergence with its parameter.

    Attributes:
        name: one of :data:`NAMES`.
        parameter: of the families, else ``None``.
        rows: the formula on log-probabilities of teacher and student.
        kernel: value and gradient of a block in closed form, or ``None``: torch then differentiates ``rows``.
    """

    name: str
    parameter: float | None
    rows: Rows
    kernel: Kernel | None


def divergence_of(caller: str, name: Any, alpha: float | None, beta: float | None) -> Divergence:
    """The divergence of this name.

    Raises:
        InputError: for another name, and for a parameter that it does not have or that lies outside its range.
    """
    check_choice(caller, "divergence", name, NAMES)
    given = {"alpha": alpha, "beta": beta}
    own = _OPTION.get(name)
    for option, value in given.items():
        if value is not None and option != own:
            takers = ", ".join(repr(each) for each, taken in _OPTION.items() if taken == option)
            refuse(caller, option, f"None for {name!r}", value, f"{takers} take it")
    if own is None:
        return Divergence(name, None, generator_rows(name, None), _KERNELS.get(name))
    _, default, (low, high, ends) = FAMILIES[name]
    value = given[own]
    parameter = default if value is None else check_between(caller, own, value, low, high, ends=ends)
    family = _FAMILY_KERNELS.get(name)
    return Divergence(name, parameter, generator_rows(name, parameter), None if family is None else family(parameter))
