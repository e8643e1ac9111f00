"""Every data recipe names all arguments of its class, with the defaults of the class unless it is about them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdkit.data

FOLDER = Path(__file__).parents[2] / "recipes" / "data"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
ON_PURPOSE = {"digits_few": {"labels"}, "imagenet": {"num_workers"}}


def test_there_are_some() -> None:
    assert len(RECIPES) >= 10


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_arguments(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# kdkit distill data={path.stem}")
    block: dict[str, Any] = yaml.safe_load(text)
    name = block.pop("_target_").removeprefix("kdkit.data.")
    parameters = inspect.signature(getattr(kdkit.data, name)).parameters
    assert list(block) and set(block) == set(parameters)
    for key, value in block.items():
        default = parameters[key].default
        if default is inspect.Parameter.empty:
            assert value == "???"
        elif key not in ON_PURPOSE.get(path.stem, ()):
            assert value == (list(default) if isinstance(default, tuple) else default), key
