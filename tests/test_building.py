"""Blocks with a ``_target_``: how they are built, and how their arguments are held against a signature."""

from __future__ import annotations

from typing import Any

import pytest

from kdkit._config.bind import Call, bind
from kdkit._config.build import instantiate
from kdkit._config.trust import trusting
from kdkit.errors import ConfigError


def options(first: int, second: int = 2, *, third: int = 3) -> tuple[int, int, int]:
    return first, second, third


def everything(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


@pytest.fixture
def here() -> Any:
    """This module as a trusted one."""
    import sys

    sys.modules.setdefault("check_targets", sys.modules[__name__])
    for target in (options, everything):
        target.__module__ = "check_targets"
    with trusting(["check_targets"]):
        yield "check_targets"


def test_building_passes_the_arguments_on_untouched(here: str) -> None:
    mutable = [object()]
    args, kwargs = instantiate({"_target_": f"{here}.everything", "a": {"b": [1]}}, mutable, extra=mutable)
    assert args[0] is mutable and kwargs["extra"] is mutable
    assert kwargs["a"] == {"b": [1]}


def test_building_inner_blocks_partials_and_offers(here: str) -> None:
    inner = {"_target_": f"{here}.options", "first": 1}
    assert instantiate({"_target_": f"{here}.options", "first": inner}) == ((1, 2, 3), 2, 3)
    kept = instantiate({"_target_": f"{here}.everything", "_recursive_": False, "first": inner})
    assert kept == ((), {"first": inner})
    assert instantiate({**inner, "_partial_": True})(second=5) == (1, 5, 3)
    assert instantiate({"_target_": f"{here}.options", "_args_": [7, 8]}) == (7, 8, 3)
    assert instantiate(inner, offer={"third": 9, "fourth": 1}) == (1, 2, 9)
    assert instantiate({**inner, "third": 4}, offer={"third": 9}) == (1, 2, 4)
    assert instantiate(None) is None


def test_building_says_where_it_failed(here: str) -> None:
    with pytest.raises(ConfigError, match=r"optim: check_targets.options failed: .*unexpected keyword argument 'nope'"):
        instantiate({"_target_": f"{here}.options", "first": 1, "nope": 2}, where="optim")
    with pytest.raises(ConfigError, match=r"loss.kd: _target_ 'os.system' is not among"):
        instantiate({"_target_": "os.system"}, where="loss.kd")
    with pytest.raises(ConfigError, match="data must be a block with a _target_, got 3"):
        instantiate(3, where="data")
    with pytest.raises(ConfigError, match=r"data.a: _target_ 'os.system' is not among"):
        instantiate({"_target_": f"{here}.everything", "a": {"_target_": "os.system"}}, where="data")


def test_binding(here: str) -> None:
    block = {"_target_": f"{here}.options"}
    assert bind("x", {**block, "first": 1}) is options
    assert bind("x", block, Call(("first",))) is options
    assert bind("x", {**block, "_partial_": True}) is options
    assert bind("x", {"_target_": f"{here}.everything", "anything": 1}, Call(("a", "b"))) is everything
    with pytest.raises(ConfigError, match=r"x: check_targets.options needs the argument 'first'; add \+x.first="):
        bind("x", block)
    with pytest.raises(ConfigError, match=r"x.first is passed by kdkit itself"):
        bind("x", {**block, "first": 1}, Call(("first",)))
    with pytest.raises(ConfigError, match="takes 2 positional arguments, but kdkit passes a, b, c"):
        bind("x", block, Call(("a", "b", "c")))
