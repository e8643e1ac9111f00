"""Imports go one way, and the door of the losses opens onto torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "kdkit"

LEVELS = [
    {"errors", "outputs", "schedules", "_files"},
    {"losses", "kernels"},
    {"balancing", "objective", "features"},
    {"data", "models", "tasks", "teachers"},
    {"engine"},
    {"report", "_config"},
    {"_run", "run"},
    {"cli"},
]
"""losses, outputs, schedules <- objective, features <- teachers, models, tasks, data <- engine <- run <- cli."""

ALLOWED_BACK: set[tuple[str, str]] = {("_config", "cli")}


def level(part: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if part in names)


def imports(path: Path) -> set[str]:
    """Top-level parts of kdkit that a file imports when it is imported (not inside functions)."""
    found = set()
    tree = ast.parse(path.read_text())
    inner = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("kdkit.")}
    return found


FILES = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py" and "_recipes" not in path.parts]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for part in imports(path) - {own}:
        assert level(part) <= level(own), f"{path.relative_to(ROOT)} must not import kdkit.{part}"


def test_importing_the_losses_loads_torch_and_nothing_else_of_ours() -> None:
    heavy = ("hydra", "omegaconf", "timm", "transformers", "accelerate", "torchvision", "ot", "datasets", "matplotlib")
    code = f"import kdkit.losses, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
