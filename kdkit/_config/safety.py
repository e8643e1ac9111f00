"""What a downloaded recipe must not be able to do: add trusted packages, run code through Hydra or the hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdkit._config.bind import blocks
from kdkit._config.context import Context
from kdkit._config.trust import trusting
from kdkit.errors import ConfigError

__all__ = ["check_code_switches", "check_trust", "trust_of", "typed_trust", "verify_hydra"]

_HYDRA = ("hydra._internal.core_plugins.", "hydra.experimental.callbacks.", "hydra_plugins.")


def typed_trust(argv: Iterable[str]) -> list[str]:
    """The packages of ``trust=[…]`` on the command line.

    Raises:
        ConfigError: if they are no list of package names.
    """
    packages: list[str] = []
    for word in argv:
        found = re.fullmatch(r"\+{0,2}trust=(.*)", word)
        if found:
            names = [name.strip(" '\"") for name in found[1].strip(" []").split(",")]
            packages = [name for name in names if name]
            wrong = [name for name in packages if not all(part.isidentifier() for part in name.split("."))]
            if wrong:
                raise ConfigError(f"trust must list packages, like trust=[mypkg], got {wrong[0]!r}")
    return packages


@contextmanager
def trust_of(context: Context) -> Iterator[None]:
    """Inside the ``with`` block, trust what was typed in ``trust=[…]``, and import it from the current folder too.

    Every process that builds something from settings has to do this for itself.
    """
    packages, folder = typed_trust(context.argv), str(Path.cwd())
    if not packages:
        yield
        return
    sys.path.insert(0, folder)
    try:
        with trusting(packages):
            yield
    finally:
        sys.path.remove(folder)


def check_trust(cfg: DictConfig, context: Context) -> None:
    """Refuse packages in ``trust`` that were not typed."""
    trusted = cfg.get("trust")
    given = [trusted] if isinstance(trusted, str) else list(trusted or [])
    unexpected = [name for name in given if name not in typed_trust(context.argv)]
    if unexpected:
        raise ConfigError(
            f"trust={unexpected} stands in a yaml file, where a downloaded recipe could put it; "
            f"type it on the command line: trust=[{','.join(map(str, unexpected))}]"
        )


def check_code_switches(settings: Mapping[str, Any], context: Context | None) -> None:
    """Refuse ``trust_remote_code``, which runs code that lies beside a model's weights, unless it was typed."""
    typed = " ".join(context.argv) if context else ""
    for path, block in _mappings(settings):
        if block.get("trust_remote_code") and "trust_remote_code" not in typed:
            raise ConfigError(
                f"{path}.trust_remote_code runs code that comes with the weights; if you trust it, "
                f"type it on the command line: ++{path}.trust_remote_code=true"
            )


def verify_hydra(hydra: DictConfig) -> None:
    """Refuse settings of Hydra's own that call anything but Hydra and its plugins: a recipe can set them too."""
    settings = OmegaConf.to_container(hydra, resolve=False)
    assert isinstance(settings, dict)
    for path, block in blocks(settings, "hydra"):
        if not str(block["_target_"]).startswith(_HYDRA):
            raise ConfigError(
                f"{path}: _target_ {block['_target_']!r} is no plugin of Hydra; take it out of the recipe"
            )
    for key in ("job_logging", "hydra_logging"):
        for path, block in _mappings(settings.get(key) or {}, f"hydra.{key}"):
            if "()" in block or not str(block.get("class", "logging.")).startswith("logging."):
                raise ConfigError(f"{path} may name classes of Python's logging only; take it out of the recipe")
    if (settings.get("job") or {}).get("env_set"):
        raise ConfigError("hydra.job.env_set changes the environment of the process; set variables in the shell")


def _mappings(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield path, value
        for key, item in value.items():
            yield from _mappings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from _mappings(item, f"{path}[{place}]")
