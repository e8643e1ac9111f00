"""Errors a user can act on: one sentence that names the argument, the rule, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InputError",
    "KdkitError",
    "KdkitWarning",
    "NonFiniteError",
    "ServerError",
    "closest",
    "did_you_mean",
]


class KdkitError(Exception):
    """Base of every error that kdkit raises on purpose; the command line shows its text alone and exits with 2."""


class KdkitWarning(UserWarning):
    """Something is not as it should be and kdkit went on without it; the command line shows its text alone."""


class InputError(KdkitError, ValueError):
    """An argument breaks its rule (shape, dtype, range, choice)."""


class ConfigError(InputError):
    """A setting, or a combination of settings, makes no sense."""


class DataError(InputError):
    """A data set is missing, incomplete or holds values outside its contract."""


class CheckpointError(InputError):
    """A checkpoint or weight file is missing, damaged or belongs to something else."""


class NonFiniteError(KdkitError, ArithmeticError):
    """A loss term became NaN or infinite during training."""


class ServerError(KdkitError):
    """A server that a run depends on is out of reach, or answers what it should not."""


def closest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The at most ``n`` entries of ``choices`` that resemble ``name``, best first."""
    options = {str(choice).lower(): str(choice) for choice in choices}
    matches = difflib.get_close_matches(str(name).lower(), options, n=n, cutoff=0.5)
    prefixed = [key for key in options if key.startswith(str(name).lower()) and key not in matches]
    return [options[key] for key in [*matches, *sorted(prefixed)][:n]]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'nkd' or 'nd'?"``, or the sorted choices when nothing is close."""
    choices = sorted({str(choice) for choice in choices})
    near = closest(name, choices)
    if near:
        return "; did you mean " + " or ".join(repr(option) for option in near) + "?"
    return "; choose from " + ", ".join(choices) if choices else "; there is none to choose from"
