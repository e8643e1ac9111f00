"""A table of a paper as data: protocol, pairs, methods, published values and where they were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdkit.errors import ConfigError, did_you_mean

__all__ = ["ALONE", "Claim", "Method", "Network", "Pair", "Table", "choose", "load", "names"]

HERE = Path(__file__).parent
EPOCHS = ("last", "best", "unknown")
ALONE = "student"
"""The row of the student without a teacher."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network by its name in the literature.

    Attributes:
        recipe: kdkit's recipe; ``None`` if there is none.
        as_teacher, as_student: overrides for its role.
    """

    recipe: str | None
    as_teacher: tuple[str, ...] = ()
    as_student: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """A teacher and a student.

    Attributes:
        teacher, student: names of networks.
        published: what the source reports for "teacher" and "student" alone, in percent.
        missing: why the pair cannot be run; empty if it can.
        metric: what is compared in this pair, where it is not the table's.
    """

    teacher: str
    student: str
    published: dict[str, float] = field(default_factory=dict)
    missing: str = ""
    metric: str = ""


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Attributes:
        title: its name in the source.
        settings: overrides of ``kdkit distill``.
        per_pair: pair -> further overrides.
        published: pair -> value in percent.
        spread: pair -> standard deviation, where it was published.
        missing: why it cannot be run; empty if it can.
        missing_for: pair -> why it cannot be run there.
        seen_in: where its values were read, if not where the table's were.
        notes: remarks.
    """

    title: str
    settings: tuple[str, ...] = ()
    per_pair: dict[str, tuple[str, ...]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    missing: str = ""
    missing_for: dict[str, str] = field(default_factory=dict)
    seen_in: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement about two rows that the results are tested against.

    Attributes:
        text: the statement.
        source: who makes it.
        better, worse: methods, or :data:`ALONE`; ``METHOD@PAIR`` where the two rows are of different pairs.
        metric: by which one is said to be better.
        over: compare the gains over this row of the same pair instead of the values; empty: the values.
        pairs: where to test it; empty: in every pair that has both rows.
    """

    text: str
    source: str
    better: str
    worse: str
    metric: str = "accuracy"
    over: str = ""
    pairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table; see ``benchmarks/tables/*.yaml``."""

    name: str
    title: str
    question: str
    source: str
    seen_in: str
    epoch: str
    runs: int | None
    metric: str
    error: bool
    missing: str
    notes: tuple[str, ...]
    settings: tuple[str, ...]
    networks: dict[str, Network]
    pairs: dict[str, Pair]
    methods: dict[str, Method]
    claims: tuple[Claim, ...]
    main: tuple[str, ...]

    def metric_of(self, pair: str) -> str:
        """What is compared in a pair."""
        return self.pairs[pair].metric or self.metric

    def published(self, method: str, pair: str) -> float | None:
        """The published value as an accuracy-like percentage, higher is better."""
        return self._value(self.methods[method].published.get(pair))

    def alone(self, pair: str, role: str) -> float | None:
        """The same for "teacher" or "student" alone."""
        return self._value(self.pairs[pair].published.get(role))

    def _value(self, value: float | None) -> float | None:
        return None if value is None else round(100 - value, 6) if self.error else value

    def why_not(self, method: str, pair: str) -> str:
        """Why a cell cannot be run, or nothing."""
        known, two = self.methods[method], self.pairs[pair]
        recipes = [name for name in (two.teacher, two.student) if self.networks[name].recipe is None]
        nothing = f"kdkit has no recipe for {recipes[0]}" if recipes else ""
        return self.missing or two.missing or known.missing or known.missing_for.get(pair, "") or nothing

    def row_title(self, method: str) -> str:
        """What the row is called; the student alone has one too."""
        return "student alone" if method == ALONE else self.methods[method].title

    def row_missing(self, pair: str, method: str) -> bool:
        """Whether there can be no results of the row."""
        return method != ALONE and bool(self.why_not(method, pair))

    def overrides(self, method: str, pair: str) -> list[str]:
        """What ``kdkit distill`` is told for a cell."""
        chosen, two = self.methods[method], self.pairs[pair]
        teacher, student = self.networks[two.teacher], self.networks[two.student]
        return [
            *self.settings,
            f"teacher={teacher.recipe}",
            f"student={student.recipe}",
            *teacher.as_teacher,
            *student.as_student,
            *chosen.settings,
            *chosen.per_pair.get(pair, ()),
        ]


# ---- reading -------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """All tables."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(name: str) -> Table:
    """A table by its name.

    Raises:
        ConfigError: if there is none, or its file does not hold what it should.
    """
    path = HERE / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"table: there is no table {name!r}{did_you_mean(name, names())}")
    content = yaml.safe_load(path.read_text())
    try:
        return _table(name, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: {error!r} while reading; compare it with another table") from error


def _table(name: str, content: Mapping[str, Any]) -> Table:
    networks = {key: Network(**_tuples(value)) for key, value in content["networks"].items()}
    pairs = {key: Pair(**_present(value)) for key, value in content["pairs"].items()}
    methods = {key: _method(value) for key, value in content["methods"].items()}
    table = Table(
        name=name,
        title=content["title"],
        question=content.get("question") or "",
        source=content["source"],
        seen_in=content.get("seen_in") or "",
        epoch=content.get("epoch", "unknown"),
        runs=content.get("runs"),
        metric=content.get("metric", "accuracy"),
        error=bool(content.get("error", False)),
        missing=content.get("missing") or "",
        notes=tuple(content.get("notes") or ()),
        settings=tuple(content.get("settings") or ()),
        networks=networks,
        pairs=pairs,
        methods=methods,
        claims=tuple(Claim(**_tuples(value)) for value in content.get("claims") or ()),
        main=tuple(content.get("main") or ()),
    )
    _check(table, set(content))
    return table


def _check(table: Table, keys: set[str]) -> None:
    unknown = keys - set(Table.__dataclass_fields__)
    problems = [f"unknown key {key!r}" for key in sorted(unknown)]
    if table.epoch not in EPOCHS:
        problems.append(f"epoch must be one of {EPOCHS}, got {table.epoch!r}")
    for key, pair in table.pairs.items():
        problems += [
            f"pair {key}: no network {name!r}" for name in (pair.teacher, pair.student) if name not in table.networks
        ]
    for key, method in table.methods.items():
        for block in (method.per_pair, method.published, method.spread, method.missing_for):
            problems += [f"method {key}: no pair {pair!r}" for pair in block if pair not in table.pairs]
    problems += [f"main: no method {name!r}" for name in table.main if name not in table.methods]
    for claim in table.claims:
        problems += [f"claim {claim.text!r}: {problem}" for problem in _problems(claim, table)]
    if problems:
        raise ConfigError(f"table {table.name}: {problems[0]} ({len(problems)} in all); correct {table.name}.yaml")


def _problems(claim: Claim, table: Table) -> list[str]:
    """What a claim names that the table does not have."""
    rows = [name.partition("@") for name in (claim.better, claim.worse)]
    methods = [method for method, _, _ in rows] + ([claim.over] if claim.over else [])
    pairs = [pair for _, at, pair in rows if at]
    found = [f"no method {name!r}" for name in methods if name not in table.methods and name != ALONE]
    found += [f"no pair {name!r}" for name in (*pairs, *claim.pairs) if name not in table.pairs]
    if len(pairs) == 1 or (pairs and claim.pairs):
        found.append("better and worse must both be METHOD@PAIR, without pairs, or neither")
    return found


def _present(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is ``null``, so that the default holds."""
    return {key: each for key, each in value.items() if each is not None}


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}


def _method(value: Mapping[str, Any]) -> Method:
    fields = _tuples(_present(value))
    fields["per_pair"] = {pair: tuple(more) for pair, more in fields.get("per_pair", {}).items()}
    return Method(**fields)


def choose(asked: str | None, known: Mapping[str, Any], what: str) -> list[str]:
    """Names of a comma-separated list; all of them if nothing is asked for.

    Raises:
        ConfigError: for one that is not there.
    """
    if not asked:
        return list(known)
    chosen = [part.strip() for part in asked.strip("[]").split(",") if part.strip()]
    for name in chosen:
        if name not in known:
            raise ConfigError(f"{what}: there is no {name!r} in this table{did_you_mean(name, list(known))}")
    return chosen
