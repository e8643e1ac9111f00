"""The candidates of a search, and mistakes in its settings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from kdkit._config.check import prepare
from kdkit._config.compose import Composer
from kdkit._config.context import Context
from kdkit._config.methods import with_losses
from kdkit._config.recipes import recipes_dir
from kdkit._config.search import Candidates, find_candidates, parse_budget
from kdkit._run.search_state import span
from kdkit.errors import ConfigError

WORDS = [
    "experiment=digits",
    "losses=[kd,nkd]",
    "search.loss.kd.temperature=[1,2,3,4,6,8]",
    "search.loss.nkd.temperature=[1,2]",
    "search.loss.nkd.gamma=[1.0,1.5]",
    "search.weights.kd=[1.0]",
    "search.weights.nkd=[1.0]",
]
COMPOSER = Composer(recipes_dir())


def composed(*words: str) -> tuple[DictConfig, Context]:
    words = (*words, with_losses(COMPOSER, "compare", words))
    context = Context("compare", words, words, recipes_dir(), "compare")
    return prepare(COMPOSER.compose("compare", words), context), context


@pytest.fixture(scope="module")
def started() -> tuple[DictConfig, Context]:
    return composed(*WORDS, "budget=1h")


@pytest.fixture(scope="module")
def found(started: tuple[DictConfig, Context]) -> Candidates:
    return find_candidates(*started)


def test_candidates_are_methods_as_they_stand_and_every_combination(found: Candidates) -> None:
    names = [candidate.name for candidate in found.tried]
    assert found.baseline is not None and found.baseline.name == "ce"
    assert names[:2] == ["kd", "nkd"]
    assert "kd temperature=3" in names and "nkd temperature=2 gamma=1.0" in names
    assert "kd temperature=4" not in names, "4.0 is what the recipe has"
    counts = Counter(candidate.method for candidate in found.tried)
    assert counts == {"kd": 6, "nkd": 2 * 2}
    for candidate in found.tried:
        for path, value in candidate.changes.items():
            assert OmegaConf.select(candidate.config, path) == value
    assert [len(candidate.changes) for candidate in found.tried] == sorted(len(c.changes) for c in found.tried)
    assert [candidate.method for candidate in found.tried[2:6]] == ["kd", "nkd"] * 2, "the methods in turn"


def test_without_losses_those_that_do_not_fit_are_left_out_with_the_reason() -> None:
    cfg, context = composed("experiment=digits", "teacher=none", "budget=1h")
    cfg.search = OmegaConf.create({**cfg.search, "loss": {"kd": {}, "tfkd": {}}, "weights": {}})
    left = find_candidates(cfg, context)
    assert [candidate.name for candidate in left.tried] == ["tfkd"]
    assert list(left.left_out) == ["kd"] and "there is none" in left.left_out["kd"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 90}, "budget must be a time like 90s, 10m, 2h or 1h30m, got 90"),
        ({"budget": "soon"}, "budget must be a time like 90s"),
        ({"budget": "0s"}, "budget must be a time like 90s"),
        ({"search": {"eta": 1}}, "search.eta must be a whole number of at least 2, got 1"),
        ({"search": {"finalists": 0}}, "search.finalists must be a whole number of at least 1, got 0"),
        ({"search": {"shortest": 1.5}}, "search.shortest must be a share of the training in (0, 1], got 1.5"),
        ({"search": {"etta": 3}}, "search has no setting 'etta'; did you mean 'eta'"),
        ({"search": {"loss": {"kd": {"temperature": 3}}}}, "search.loss.kd.temperature must be a list of values"),
        (
            {"search": {"loss": {"kd": {"temperature": [-1]}}}},
            "search of 'kd temperature=-1': KDLoss: temperature must be a positive number",
        ),
        ({"search": {"loss": {"kd": {"temprature": [1]}}}}, "takes no argument 'temprature'"),
        ({"search": {"weights": {"kd": ["much"]}}}, "search of 'kd weight=much': weights.kd"),
    ],
)
def test_mistakes_are_one_sentence(
    changes: dict[str, Any],
    message: str,
    started: tuple[DictConfig, Context],
    found: Candidates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg, context = started
    configs = {"ce": found.baseline.config, "kd": found.tried[0].config}  # type: ignore[union-attr]
    monkeypatch.setattr("kdkit._config.search.method_configs", lambda *_: configs)
    open_cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    with pytest.raises(ConfigError) as caught:
        find_candidates(OmegaConf.merge(open_cfg, changes), context)  # type: ignore[arg-type]
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="there is nothing to search: losses names the baseline alone"):
        del configs["kd"]
        find_candidates(cfg, context)


def test_a_budget_is_a_time() -> None:
    texts = ["90s", "10m", "2h", "1h30m", "1.5h", "1d"]
    assert [parse_budget(text) for text in texts] == [90, 600, 7200, 5400, 5400, 86400]
    assert [span(seconds) for seconds in (45, 150, 600, 7200, 7500)] == ["45s", "2m30s", "10m", "2h", "2h05m"]
