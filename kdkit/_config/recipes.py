"""The recipes folder: where it is, which groups and options it has. Reads files only, no Hydra."""

from __future__ import annotations

from pathlib import Path

from kdkit.errors import ConfigError

__all__ = ["group_options", "groups", "headline", "model_recipes", "recipes_dir"]

_HIDDEN = (".", "hydra", "model")


def recipes_dir() -> Path:
    """``kdkit/_recipes`` in an installed wheel, else ``recipes`` beside the package in a checkout.

    Raises:
        ConfigError: if there is neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_recipes", package.parent / "recipes"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"kdkit's recipes are missing from {package}; install kdkit again with pip install kdkit")


def groups(*folders: Path) -> dict[str, dict[str, Path]]:
    """Group -> option -> file, over several recipe folders; a later folder adds to an earlier one.

    Left out are Hydra's own groups, names with a leading underscore, and ``model``, which holds the parts that
    ``student`` and ``teacher`` share.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            if group.split("/")[0] not in _HIDDEN and not file.stem.startswith("_"):
                found.setdefault(group, {}).setdefault(file.stem, file)
    return dict(sorted(found.items()))


def group_options(group: str, *folders: Path) -> dict[str, Path]:
    """Option -> file of one group."""
    return groups(*folders).get(group, {})


def model_recipes(*folders: Path) -> dict[str, Path]:
    """Name -> file of the networks that ``student`` and ``teacher`` share."""
    return {file.stem: file for folder in folders for file in sorted((folder / "model").glob("*.yaml"))}


def headline(file: Path) -> str:
    """The first comment of a recipe, without ``# @package``: the command that uses it."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            text = line.lstrip("#").strip()
            if text and not text.startswith("@package"):
                return text
        elif line.strip():
            break
    return ""
