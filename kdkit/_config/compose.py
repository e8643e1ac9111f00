"""Composing settings out of recipes without running anything: the errors come before the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from kdkit._config.recipes import groups
from kdkit.errors import ConfigError

__all__ = ["VERSION_BASE", "Composer"]

VERSION_BASE = "1.3"
"""The behaviour of Hydra that the recipes are written for."""

_BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


class Composer:
    """Composes settings exactly as Hydra does for the same recipes and overrides.

    Args:
        recipes: kdkit's recipes.
        config_dir: a folder of the user's with more of them, or ``None``.
    """

    def __init__(self, recipes: Path, config_dir: Path | None = None) -> None:
        if config_dir is not None and not config_dir.is_dir():
            raise ConfigError(f"--config-dir must be a folder, got {str(config_dir)!r}; create it or correct the path")
        version.setbase(VERSION_BASE)
        setup_globals()
        self.recipes, self.config_dir = recipes, config_dir and config_dir.absolute()
        search_path = create_config_search_path(str(recipes.absolute()))
        if config_dir is not None:
            place = SearchPathQuery(provider="schema")
            search_path.prepend(provider="command-line", path=f"file://{config_dir.absolute()}", anchor=place)
        self.loader = ConfigLoaderImpl(search_path)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Overrides as Hydra's grammar reads them."""
        return OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))

    def compose(self, config_name: str, overrides: Sequence[str], *, hydra: bool = False) -> DictConfig:
        """The settings of one job; with ``hydra`` its own node stays in them."""
        config = self.loader.load_configuration(config_name, list(overrides), run_mode=RunMode.RUN)
        return config if hydra else without_hydra(config)

    def jobs(self, config_name: str, overrides: Sequence[str]) -> Iterator[DictConfig]:
        """The settings of every job of a sweep, with the node of Hydra; first those of the sweep itself.

        Sweepers other than Hydra's own decide about their jobs while they run, so only the sweep is composed.
        """
        sweep = self.loader.load_configuration(config_name, list(overrides), run_mode=RunMode.MULTIRUN)
        yield sweep
        sweeper = sweep.hydra.sweeper
        if sweeper.get("_target_") != _BASIC_SWEEPER:
            return
        parameters = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        own, task = texts(sweep.hydra.overrides.hydra), [*parameters, *texts(sweep.hydra.overrides.task)]
        for [*job] in BasicSweeper.split_arguments(self.parse(task), max_batch_size=None)[0]:
            yield self.compose(config_name, [*own, *job], hydra=True)

    def options(self, group: str) -> list[str]:
        """Names that may be chosen in a group."""
        return [name for name in self.loader.get_group_options(group) if not name.startswith("_")]

    def group_names(self) -> list[str]:
        """All groups that something can be chosen from, but those of Hydra."""
        folders = [self.recipes, *([self.config_dir] if self.config_dir else [])]
        return list(groups(*folders))


def texts(node: Any) -> list[str]:
    """Overrides as they were typed: a reference in one is not looked up."""
    found = OmegaConf.to_container(node, resolve=False)
    assert isinstance(found, list)
    return found


def without_hydra(config: DictConfig) -> DictConfig:
    """Take Hydra's own node out."""
    with unlocked(config):
        config.pop("hydra", None)
    return config


@contextmanager
def unlocked(config: DictConfig) -> Iterator[DictConfig]:
    """Let keys be added and removed, at any depth."""
    with open_dict(config):
        yield config
