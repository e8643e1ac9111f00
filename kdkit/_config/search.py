"""``kdkit compare budget=…``: the candidates of a search, out of methods and the values to try."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdkit._config.bind import bind
from kdkit._config.context import Context
from kdkit._config.methods import baseline_name, method_configs
from kdkit._config.pairing import check_losses
from kdkit.errors import ConfigError, InputError, did_you_mean

__all__ = ["Candidate", "Candidates", "Rules", "find_candidates", "parse_budget", "search_rules"]

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_KEYS = ("eta", "finalists", "shortest", "trial_steps", "loss", "weights")


@dataclass(frozen=True, slots=True)
class Rules:
    """How a search spends its budget.

    Attributes:
        budget: seconds, everything that the command does included.
        eta: one in so many candidates goes on to the next rung, which is so many times longer.
        finalists: candidates of the final at most, the baseline not counted.
        shortest: least share of the full training that a rung may have.
        trial_steps: optimizer steps by which the time of a step is measured.
    """

    budget: float
    eta: int
    finalists: int
    shortest: float
    trial_steps: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One set of settings to try.

    Attributes:
        name: the method and what is changed in its settings, ``kd temperature=2.0``.
        method: the method, as in ``losses``.
        changes: path of a setting -> its value, where it differs from the method's own.
        config: the settings, checked.
    """

    name: str
    method: str
    changes: dict[str, Any]
    config: DictConfig


@dataclass(slots=True)
class Candidates:
    """What a search chooses from.

    Attributes:
        baseline: the student alone, always in the final; ``None`` without one.
        tried: the candidates: first every method as it stands, then those with one change, the methods in turn, and so
            on.
        left_out: method -> why it does not fit; only of methods that nobody asked for.
    """

    baseline: Candidate | None
    tried: list[Candidate]
    left_out: dict[str, str]


def parse_budget(text: Any) -> float:
    """``"90s"``, ``"10m"``, ``"1h30m"`` or ``"1.5h"`` in seconds.

    Raises:
        ConfigError: for anything else, and for no time at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", str(text))
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != str(text) or not seconds > 0:
        raise ConfigError(f"budget must be a time like 90s, 10m, 2h or 1h30m, got {text!r}")
    return seconds


def search_rules(cfg: DictConfig) -> Rules:
    """The rules of ``search`` and ``budget``.

    Raises:
        ConfigError: naming the first setting out of range.
    """
    search = cfg.search
    for key in search:
        if key not in _KEYS:
            raise ConfigError(f"search has no setting {key!r}{did_you_mean(str(key), _KEYS)}")
    for key, least in (("eta", 2), ("finalists", 1), ("trial_steps", 1)):
        value = search[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"search.{key} must be a whole number of at least {least}, got {value!r}")
    shortest = search.shortest
    if isinstance(shortest, bool) or not isinstance(shortest, int | float) or not 0 < shortest <= 1:
        raise ConfigError(f"search.shortest must be a share of the training in (0, 1], got {shortest!r}")
    return Rules(parse_budget(cfg.budget), search.eta, search.finalists, float(shortest), search.trial_steps)


def find_candidates(cfg: DictConfig, context: Context) -> Candidates:
    """Every method with its settings as they stand, and with every combination of the values of ``search``.

    Methods that were not asked for (``losses`` is null) are left out if they do not fit teacher, student and data.

    Args:
        cfg: settings of ``kdkit compare`` with a budget.
        context: how it was called.

    Raises:
        ConfigError: naming the method, or the value, that makes no sense.
    """
    search_rules(cfg)
    left_out: dict[str, str] = {}
    configs = method_configs(cfg, context, None if cfg.losses else left_out)
    first = baseline_name(cfg)
    baseline = Candidate(first, first, {}, configs[first]) if first else None
    grids = [_grid(name, chosen, cfg.search) for name, chosen in configs.items() if name != first]
    if not grids:
        reason = next(iter(left_out.values()), "losses names the baseline alone")
        raise ConfigError(f"there is nothing to search: {reason}")
    placed = [(len(each.changes), place, each) for grid in grids for place, each in enumerate(_by_changes(grid))]
    tried = [candidate for _, _, candidate in sorted(placed, key=lambda entry: entry[:2])]
    return Candidates(baseline, tried, left_out)


def _grid(method: str, cfg: DictConfig, search: DictConfig) -> list[Candidate]:
    axes: dict[str, list[Any]] = {}
    for loss in map(str, cfg.loss):
        options = search.loss.get(loss) or {}
        if not isinstance(options, Mapping | DictConfig):
            raise ConfigError(f"search.loss.{loss} must hold options of the loss and lists of values, got {options!r}")
        for option in options:
            axes[f"loss.{loss}.{option}"] = _values(f"search.loss.{loss}.{option}", options[option])
        if loss in search.weights:
            axes[f"weights.{loss}"] = _values(f"search.weights.{loss}", search.weights[loss])
    choices = []
    for path, values in axes.items():
        own = _plain(OmegaConf.select(cfg, path))
        choices.append([None, *((path, value) for value in values if value != own)])
    points = [dict(filter(None, point)) for point in itertools.product(*choices)]
    return [_candidate(method, cfg, point) for point in points]


def _by_changes(grid: list[Candidate]) -> list[Candidate]:
    return sorted(grid, key=lambda candidate: len(candidate.changes))


def _values(path: str, values: Any) -> list[Any]:
    plain = _plain(values)
    if not isinstance(plain, list) or not plain:
        raise ConfigError(f"{path} must be a list of values to try, like {path}=[1,2,4], got {plain!r}")
    return list({repr(value): value for value in plain}.values())


def _candidate(method: str, cfg: DictConfig, changes: dict[str, Any]) -> Candidate:
    name = " ".join([method, *(f"{_short(path, method)}={value}" for path, value in changes.items())])
    if not changes:
        return Candidate(name, method, changes, cfg)
    cfg = cfg.copy()
    for path, value in changes.items():
        OmegaConf.update(cfg, path, value, merge=False, force_add=True)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    try:
        for loss, block in settings["loss"].items():
            bind(f"loss.{loss}", block)
        check_losses(settings)
    except InputError as error:
        raise ConfigError(f"search of {name!r}: {error}") from error
    return Candidate(name, method, changes, cfg)


def _short(path: str, method: str) -> str:
    """What a setting is called behind the name of its method: ``temperature``, ``weight``, or with its loss."""
    block, loss, *rest = path.split(".")
    if loss == method:
        return "weight" if block == "weights" else ".".join(rest)
    return path if block == "weights" else ".".join([loss, *rest])


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
