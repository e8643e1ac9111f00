"""Errors of Hydra, OmegaConf and YAML as one sentence that names the valid choices."""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from kdkit._config.compose import Composer
from kdkit._config.trust import locate
from kdkit.errors import ConfigError, KdkitError, did_you_mean

__all__ = ["explain", "one_line"]

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


def one_line(text: object) -> str:
    """Text without line breaks and repeated spaces."""
    return " ".join(str(text).split())


class Failed:
    """A composition that failed: enough of it to look the valid names up.

    Args:
        composer: what composed.
        config_name: the primary configuration.
        overrides: what was composed.
    """

    def __init__(self, composer: Composer, config_name: str, overrides: Sequence[str]) -> None:
        self.composer, self.config_name, self.overrides = composer, config_name, overrides

    def before(self, key: str) -> DictConfig:
        """The settings without the overrides from that of ``key`` on (choices of groups stay)."""
        groups = set(self.composer.group_names())
        kept: list[str] = []
        bad = False
        for override in self.composer.parse(self.overrides):
            bad = bad or override.key_or_group == key
            if not override.is_sweep_override() and (override.key_or_group in groups or not bad):
                kept.append(str(override.input_line))
        return self.composer.compose(self.config_name, kept)


def explain(error: BaseException, failed: Failed | None = None) -> KdkitError | None:
    """The sentence for an error that the user can act on, or ``None`` for one that is a fault of kdkit.

    Args:
        error: anything raised while composing, checking or running.
        failed: the composition it came from; without it the closest names of a wrong key are unknown.
    """
    if isinstance(error, KdkitError):
        return error
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__) or ConfigError(one_line(error))
    if isinstance(error, yaml.MarkedYAMLError):
        return _yaml(error)
    if isinstance(error, MissingConfigException):
        return _missing_config(error, failed)
    if isinstance(error, OverrideParseException):
        return _grammar(error)
    if isinstance(error, HydraException):
        return _composition(error, failed)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error)
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename:
        return ConfigError(f"cannot write {error.filename}: {error.strerror}; choose another folder with run_dir=…")
    if isinstance(error, ValueError) and failed is not None:
        return _value(error, failed)
    return None


def _yaml(error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}" if mark else "a recipe"
    return ConfigError(f"cannot read {place}: {one_line(error.problem or error)}")


def _missing_config(error: MissingConfigException, failed: Failed | None) -> ConfigError:
    name = error.missing_cfg_file or ""
    group, _, option = name.rpartition("/")
    if not group:
        return ConfigError(
            f"there is no configuration {name!r}; leave --config-name out, or add the folder that has it "
            f"with --config-dir"
        )
    groups = failed.composer.group_names() if failed else []
    options = error.options or (failed.composer.options(group) if failed else [])
    if failed and group not in groups and not group.startswith("hydra"):
        return ConfigError(f"unknown group {group!r} in {name!r}{did_you_mean(group, groups)}")
    return ConfigError(f"{group} has no option {option!r}{did_you_mean(option, options)}")


def _grammar(error: OverrideParseException) -> ConfigError:
    override = str(error.override)
    if "=" not in override and not override.startswith("~"):
        return ConfigError(f"{override!r} is no override; write key=value, and options like --config-dir in full")
    return ConfigError(
        f"cannot read the override {override!r}; write key=value, with quotes around lists and values with spaces or "
        f"brackets: 'loss=[ce,nkd]'"
    )


def _composition(error: HydraException, failed: Failed | None) -> ConfigError:
    text, cause = str(error), error.__cause__
    found = re.match(r"Could not override '([^']+)'", text)
    if found and isinstance(cause, ConfigKeyError | ConfigAttributeError) and failed is not None:
        return unknown_key(found[1], failed)
    if found := re.match(r"Could not override '([^']+)'\.\s+No match", text):
        names = failed.composer.group_names() if failed else []
        return ConfigError(f"there is no group {found[1]!r} to choose from{did_you_mean(found[1], names)}")
    if found := re.match(r"Ambiguous value for argument '(.+)'", text):
        return ConfigError(
            f"{found[1]!r} names several values; add -m to run one job for each, or write a list: key=[…]"
        )
    if found := re.match(r"Sweep parameters '(.+)' requires --multirun", text):
        return ConfigError(f"{found[1]!r} names several values; add -m to run one job for each")
    if isinstance(cause, OmegaConfBaseException):
        explained = _omegaconf(cause)
        return ConfigError(f"{one_line(text)}: {explained}") if text.strip() else explained
    return ConfigError(one_line(text.split("Config search path:")[0]))


def _omegaconf(error: OmegaConfBaseException) -> ConfigError:
    place = re.search(r"full_key: (\S+)", str(error))
    key = f"{place[1]}: " if place else ""
    text = str(error).split("\n", 1)[0]
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{error.full_key} must be given; add {error.full_key}=…")
    if isinstance(error, InterpolationKeyError):
        return ConfigError(f"{key}{one_line(text)}; correct the name between ${{ and }}")
    return ConfigError(f"{key}{one_line(text)}")


def _value(error: ValueError, failed: Failed) -> ConfigError | None:
    """Hydra raises plain ValueErrors for a few mistakes in overrides and flags."""
    text = one_line(error)
    if text.startswith("Config group override must be"):
        groups = set(failed.composer.group_names())
        for override in failed.composer.parse(failed.overrides):
            if override.key_or_group in groups and not isinstance(override.value(), str | list):
                group = override.key_or_group
                none = f"; for none of them write {_none(group, failed)}" if override.value() is None else ""
                return ConfigError(
                    f"{override.input_line!r} must name options of the group {group}: "
                    f"{', '.join(failed.composer.options(group))}{none}"
                )
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    origin = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return ConfigError(text) if origin.split(".")[0] in ("hydra", "omegaconf") else None


def _none(group: str, failed: Failed) -> str:
    return f"{group}=none" if "none" in failed.composer.options(group) else f"~{group}"


def unknown_key(key: str, failed: Failed) -> ConfigError:
    """What to write instead of a key that does not exist."""
    config: Any = failed.before(key)
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(config, DictConfig) or config._is_none():
            return _no_keys(".".join(path), config, key)
        if part not in config:
            break
        path.append(part)
        config = config._get_node(part)
    else:  # the key exists: it was given a block that holds an unknown one
        given = next((o.value() for o in failed.composer.parse(failed.overrides) if o.key_or_group == key), None)
        known = config if isinstance(config, DictConfig) else {}
        inner = next((str(name) for name in given if name not in known), None) if isinstance(given, dict) else None
        if inner is not None:
            return ConfigError(f"{key} has no setting {inner!r}; if you want to add it, use a plus: +{key}.{inner}=…")
    return _not_in(config, ".".join(path), part, key, failed)


def _no_keys(parent: str, value: Any, key: str) -> ConfigError:
    plain = value._value() if isinstance(value, Container) else getattr(value, "_val", value)
    if plain is None:
        return ConfigError(f"{key} cannot be set while {parent} is null; choose one with {parent}=…")
    return ConfigError(f"{key} cannot be set: {parent} is a plain value ({plain}) without settings of its own")


def _not_in(config: DictConfig, parent: str, part: str, key: str, failed: Failed) -> ConfigError:
    names = [str(name) for name in config]
    if (parent, names) in (("teacher", ["train"]), ("teacher.train", ["optim", "scheduler"])):  # teacher=none
        return ConfigError(f"{key} cannot be set while teacher is null; choose one with teacher=…")
    owner = f"{parent} has no" if parent else "there is no"
    if parent in ("loss", "weights"):
        losses = failed.composer.options("loss")
        if part in losses:
            if "losses" in failed.before(key):
                return ConfigError(f"{key} belongs to a loss of no method; name it in 'losses=[…,{part}]'")
            chosen = ",".join([*(str(name) for name in failed.before(key).loss), part])
            return ConfigError(f"{key} belongs to a loss that is not chosen; choose it with 'loss=[{chosen}]'")
        names += losses
    elif not parent:
        names += failed.composer.group_names()
    elif "_target_" in config:
        target = OmegaConf.to_container(config).get("_target_")  # type: ignore[union-attr]
        arguments = _arguments(target)
        if part in arguments:
            return ConfigError(
                f"{key} is an option of {target} that its recipe leaves out; add it with a plus: +{key}=…"
            )
        owner = f"{parent} ({target}) has no"
        names = [name for name in {*names, *arguments} if not name.startswith("_")]
    return ConfigError(f"{owner} setting {part!r}{did_you_mean(part, names)}")


def _arguments(target: object) -> list[str]:
    try:
        return list(inspect.signature(locate(str(target))).parameters)  # type: ignore[arg-type]
    except (KdkitError, ValueError, TypeError):
        return []
