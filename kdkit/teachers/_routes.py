"""Which teacher serves which data source, and with what share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from kdkit.data._base import Batch, Spec, TextSpec
from kdkit.errors import ConfigError, did_you_mean

__all__ = ["check_routes", "shares_of", "source_names", "sources_of"]

Routes = Mapping[str, str | Mapping[str, float]]
"""Pattern of source names -> a teacher, or teacher -> share."""


def check_routes(routes: Any, teachers: Sequence[str], where: str = "teacher.routed") -> None:
    """Refuse routes to teachers that there are not, or shares that are none.

    Raises:
        ConfigError: about the first.
    """
    if not isinstance(routes, Mapping) or not routes:
        raise ConfigError(f"{where}.routes must name at least one source and its teacher, got {routes!r}")
    for pattern, route in routes.items():
        path = f"{where}.routes[{pattern!r}]"
        named = {route: 1.0} if isinstance(route, str) else route
        if not isinstance(named, Mapping) or not named:
            raise ConfigError(f"{path} must be the name of a teacher, or teacher: share, got {route!r}")
        for name, share in named.items():
            if name not in teachers:
                raise ConfigError(f"{path} leads to {name!r}, which is no teacher{did_you_mean(str(name), teachers)}")
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share < math.inf:
                raise ConfigError(f"{path}.{name} must be a number of at least 0, got {share!r}")
        if sum(named.values()) <= 0:
            raise ConfigError(f"{path} gives no teacher a share above 0; leave this route out, or raise one")
    unused = [name for name in teachers if not any(name == route or name in route for route in routes.values())]
    if unused:
        raise ConfigError(f"{where}.teachers.{unused[0]} serves no source; name it in {where}.routes, or leave it out")


def source_names(spec: Spec) -> tuple[str, ...]:
    """Sources that the data tell apart: those of texts, or the classes of images and labelled texts."""
    return spec.sources if isinstance(spec, TextSpec) else spec.class_names


def shares_of(routes: Routes, teachers: Sequence[str], names: Sequence[str]) -> Tensor:
    """Shares ``[S + 1, N]`` of N teachers for S sources, rows that sum to 1; the last row is of samples without one.

    A source takes the first route whose pattern fits its name; samples without a source take the route ``"*"``.

    Raises:
        ConfigError: for a pattern that fits no source, or sources and samples that no route serves.
    """
    if not names and set(routes) != {"*"}:
        pattern = next(pattern for pattern in routes if pattern != "*")
        raise ConfigError(
            f"teacher.routed.routes[{pattern!r}] names a source, and the data tell none apart; set data.source (text) "
            "or use data with class names (images), or route '*' alone"
        )
    table = torch.zeros(len(names) + 1, len(teachers))
    used = set()
    for place, name in enumerate([*names, None]):
        fits = (pattern for pattern in routes if pattern == "*" or (name is not None and fnmatchcase(name, pattern)))
        found = next(fits, None)
        if found is None and name is not None:
            raise ConfigError(
                f"source {name!r} of the data has no route; add one to teacher.routed.routes, or '*' for all others"
            )
        if found is None:
            continue
        used.add(found)
        route = routes[found]
        for teacher, share in ({route: 1.0} if isinstance(route, str) else route).items():
            table[place, list(teachers).index(teacher)] = share
    idle = [pattern for pattern in routes if pattern not in used]
    if idle:
        raise ConfigError(
            f"teacher.routed.routes[{idle[0]!r}] fits no source that is left{did_you_mean(idle[0], names)}; drop it"
        )
    return table / table.sum(dim=1, keepdim=True).clamp(min=1e-30)


def sources_of(batch: Batch, spec: Spec) -> Tensor:
    """Number of the source of each sample ``[B]`` or of each token that predicts ``[B, T - 1]``; -1 for none."""
    if not isinstance(spec, TextSpec):
        return batch["source"] if "source" in batch else batch["label"].clamp(min=-1)
    if "source" in batch:
        return batch["source"][:, :-1]
    return torch.full_like(batch["input_ids"][:, :-1], -1)
