"""The text of ``kdkit COMMAND --help``."""

from __future__ import annotations

import textwrap
from pathlib import Path

from kdkit._config.recipes import groups

__all__ = ["command_help"]

_GRAMMAR = """
Settings (Hydra's grammar; quotes around lists):
  group=option            choose an option of a group; loss and logger take lists: 'loss=[ce,kd]'
  key.of.setting=value    change a value; +key=value adds one, ~key takes one away
  key=a,b -m              one run per value; with several such keys, one per combination
  --config-dir FOLDER     recipes of your own beside kdkit's
  --cfg job [--resolve]   print the settings and stop; --package loss prints a part of them
  --info defaults         print which recipe each setting comes from
  trust=[mypkg]           let _target_ name classes of your own package, also one in this folder

Groups and their options (kdkit ls recipes tells more):
"""


def command_help(header: str, recipes: Path, config_dir: Path | None) -> str:
    """What a command does, how settings are written, and what there is to choose from.

    Args:
        header: the command's own part, from its recipe.
        recipes: kdkit's recipes.
        config_dir: the user's, or ``None``.
    """
    found = groups(recipes, *([config_dir] if config_dir else []))
    lines = []
    for group, options in found.items():
        text = ", ".join(options)
        lines += textwrap.wrap(text, 100, initial_indent=f"  {group + ':':<12}", subsequent_indent=" " * 14)
    return header.rstrip() + "\n" + _GRAMMAR + "\n".join(lines) + "\n"
