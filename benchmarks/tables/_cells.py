"""The cells of a table: every pair, method and seed with its settings, composed and checked before any work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from benchmarks.tables._table import ALONE, Table
from kdkit._config.check import prepare
from kdkit._config.compose import Composer
from kdkit._config.context import Context
from kdkit._config.explain import Failed, explain
from kdkit._config.recipes import recipes_dir
from kdkit._files import sha256_json
from kdkit._run.cells import Cell
from kdkit.errors import ConfigError

__all__ = ["ALONE", "Plan", "Planned", "make_plan", "outline"]

_ENGINE = {"baseline": False, "export": False, "report": False, "keep": 1}


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell before it gets a folder.

    Attributes:
        pair, method: keys of the table; :data:`ALONE` stands for no method.
        settings: composed and checked, the seed left to be set.
    """

    pair: str
    method: str
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of everything that defines the cell but its seed."""
        return sha256_json({key: value for key, value in self.settings.items() if key not in _NOT_DEFINING})


_PER_LOSS = ("loss", "weights", "teacher_loss", "teacher_weights", "features")
_NOT_DEFINING = ("run_dir", "resume", "spec", "loggers", "seed")


@dataclass(slots=True)
class Plan:
    """What is run of a table.

    Attributes:
        table: the table.
        cells: those that can be run.
        missing: (pair, method) -> why not, for the others that have a published value.
        same: (pair, method) -> the pair whose cell stands for it: students alone do not depend on the teacher.
    """

    table: Table
    cells: list[Planned] = field(default_factory=list)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)
    same: dict[tuple[str, str], str] = field(default_factory=dict)

    def folders(self, root: Path, seeds: Sequence[int]) -> list[Cell]:
        """One cell for each seed, seed by seed, so that whole tables come out early."""
        return [_cell(planned, seed, root) for seed in seeds for planned in self.cells]


def _cell(planned: Planned, seed: int, root: Path) -> Cell:
    folder = root / "cells" / f"{planned.pair.replace('/', '--')}" / f"{planned.method}-s{seed}"
    return Cell(f"{planned.pair}|{planned.method}", seed, {**planned.settings, "seed": seed}, str(folder))


def make_plan(
    table: Table, pairs: Sequence[str], methods: Sequence[str], extra: Sequence[str] = (), *, made_up: bool = False
) -> Plan:
    """Compose every cell.

    Args:
        table: the table.
        pairs, methods: which of it.
        extra: overrides on top, the same for all cells.
        made_up: the data will be made up, so that a folder that has to be given need not be.

    Raises:
        ConfigError: if the settings of a cell make no sense; names the cell.
    """
    plan = Plan(table)
    if made_up and "data=imagenet" in table.settings:
        extra = ["data.root=made-up", *extra]
    alone: dict[str, str] = {}
    for pair in pairs:
        for method in methods:
            published = table.methods[method].published
            if published and pair not in published:
                continue
            reason = table.why_not(method, pair)
            if reason:
                plan.missing[pair, method] = reason
                continue
            plan.cells.append(_planned(pair, method, table.overrides(method, pair), extra))
        if any(planned.pair == pair for planned in plan.cells):
            cell = _planned(pair, ALONE, _alone(table, pair), extra)
            known = alone.setdefault(cell.digest, pair)
            if known == pair:
                plan.cells.append(cell)
            else:
                plan.same[pair, ALONE] = known
    return plan


def outline(table: Table, pairs: Sequence[str], methods: Sequence[str]) -> Plan:
    """The rows of the table without their settings, for pages that are written again from results."""
    plan, alone = Plan(table), dict[str, str]()
    for pair in pairs:
        for method in methods:
            published = table.methods[method].published
            if published and pair not in published:
                continue
            reason = table.why_not(method, pair)
            if reason:
                plan.missing[pair, method] = reason
            else:
                plan.cells.append(Planned(pair, method, {}))
        if any(planned.pair == pair for planned in plan.cells):
            known = alone.setdefault(table.pairs[pair].student, pair)
            if known == pair:
                plan.cells.append(Planned(pair, ALONE, {}))
            else:
                plan.same[pair, ALONE] = known
    return plan


def _alone(table: Table, pair: str) -> list[str]:
    student = table.networks[table.pairs[pair].student]
    general = [each for each in table.settings if _block(each) not in ("teacher", *_PER_LOSS)]
    return [*general, "teacher=none", f"student={student.recipe}", *student.as_student, "loss=[ce]"]


def _block(override: str) -> str:
    """The block that an override reaches into: ``teacher`` for ``optim@teacher.train.optim=adam`` too."""
    key = override.lstrip("+~").split("=", 1)[0]
    return key.split("@")[-1].split(".")[0]


@cache
def _composer() -> Composer:
    return Composer(recipes_dir())


def _planned(pair: str, method: str, overrides: list[str], extra: Sequence[str]) -> Planned:
    """``extra`` as far as it concerns the cell: options of losses go to the cells that have them."""
    failed = Failed(_composer(), "distill", [*overrides, *extra])
    try:
        chosen = _composer().compose("distill", overrides)
        own = [each for each in extra if _concerns(each, chosen)]
        failed.overrides = words = [*overrides, *own]
        context = Context("distill", tuple(words), tuple(words), _composer().recipes, "distill")
        cfg = prepare(_composer().compose("distill", words) if own else chosen, context)
    except Exception as error:
        sentence = explain(error, failed)
        if sentence is None:
            raise
        raise ConfigError(f"cell {pair} | {method}: {sentence}") from error
    return Planned(pair, method, _settings(cfg))


def _concerns(override: str, chosen: DictConfig) -> bool:
    block = _block(override)
    if block == "teacher":
        return chosen.teacher is not None and set(chosen.teacher) != {"train"}  # what teacher=none leaves
    if block not in _PER_LOSS:
        return True
    name = re.split(r"[.=]", override.lstrip("+~"), maxsplit=2)[1]
    known = {"weights": "loss", "teacher_weights": "teacher_loss"}.get(block, block)
    return "_target_" in (chosen[known].get(name) or {}) if block != "features" else name in chosen.features


def _settings(cfg: DictConfig) -> dict[str, Any]:
    cfg = cfg.copy()
    cfg.resume, cfg.run_dir, cfg.loggers = None, None, {}
    cfg.engine.update(_ENGINE)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    return settings
