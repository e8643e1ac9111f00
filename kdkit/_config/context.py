"""What a command knows about how it was called, besides its settings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """How a command was called.

    Attributes:
        command: ``"distill"``, ``"train"``, ``"cache"``, ``"evaluate"`` or ``"compare"``.
        argv: everything typed after the command.
        overrides: the overrides of this job alone; in a sweep, with the values of this job.
        recipes: the folder of kdkit's recipes.
        config_name: the primary configuration.
        config_dir: the user's ``--config-dir``.
        multirun: whether this is a job of a sweep (``-m``).
        job: number of the job in its sweep, else 0.
        output_dir: the folder that a sweep made for this job, else ``None``.
    """

    command: str
    argv: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    recipes: Path = Path("recipes")
    config_name: str = "config"
    config_dir: Path | None = None
    multirun: bool = False
    job: int = 0
    output_dir: Path | None = None

    @property
    def command_line(self) -> str:
        """The command as it was typed, quoted for a shell."""
        return shell_line(["kdkit", self.command, *self.argv])

    @property
    def job_line(self) -> str:
        """The command that repeats this job alone: the same as :attr:`command_line` outside of a sweep."""
        if not self.multirun:
            return self.command_line
        folder = ["--config-dir", str(self.config_dir)] if self.config_dir else []
        return shell_line(["kdkit", self.command, *folder, *self.overrides])


def shell_line(words: Sequence[str]) -> str:
    """Words joined so that a shell reads them back unchanged."""
    return shlex.join(words)
