"""The recipe that a search leaves: the winner's settings, to be run again with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdkit._config.context import shell_line
from kdkit._files import write_atomic
from kdkit._run.board import without_own

__all__ = ["winner_command", "write_winner"]

_GROUPS = ("data", "task", "teacher", "student", "balance", "optim", "scheduler", "engine")
_LISTS = ("loss", "logger")
_NOT_SETTINGS = ("run_dir", "resume", "trust", "spec", "seed")


def write_winner(folder: Path, config: DictConfig, title: str) -> Path:
    """Write ``winner/experiment/winner.yaml``: every setting of a candidate, none of kdkit's defaults needed.

    The groups that kdkit's own recipes would choose are taken away, so that nothing of theirs is left among the
    settings.

    Args:
        folder: of the comparison.
        config: the candidate's settings.
        title: what it is, for the comment at the top.

    Returns:
        The file.
    """
    plain: Any = OmegaConf.to_container(without_own(config), resolve=False)
    settings = {key: value for key, value in plain.items() if key not in _NOT_SETTINGS}
    nothing = [f"  - override /{group}: null" for group in _GROUPS] + [f"  - override /{group}: []" for group in _LISTS]
    head = ["# @package _global_", f"# {winner_command(folder, None)}", f"# {title}", "defaults:", *nothing]
    text = "\n".join(head) + "\n" + OmegaConf.to_yaml(OmegaConf.create(settings))
    return write_atomic(folder / "winner" / "experiment" / "winner.yaml", text)


def winner_command(folder: Path, seed: int | None, trust: list[str] | None = None) -> str:
    """The command that runs the winner again."""
    words = ["kdkit", "distill", "--config-dir", str(folder / "winner"), "experiment=winner"]
    words += [f"seed={seed}"] if seed is not None else []
    return shell_line([*words, *([f"trust=[{','.join(trust)}]"] if trust else [])])
