"""Everything that can be known to be wrong before any data or network is loaded."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdkit._config.bind import Call, bind, blocks
from kdkit._config.compose import unlocked
from kdkit._config.context import Context
from kdkit._config.keys import check_keys, check_numbers
from kdkit._config.links import check_chain, link_settings
from kdkit._config.pairing import check_blocks, check_losses, check_teacher_training
from kdkit._config.recipes import group_options, recipes_dir
from kdkit._config.safety import check_code_switches, check_trust
from kdkit._config.trust import locate
from kdkit.errors import ConfigError, did_you_mean

__all__ = ["check", "prepare"]

_TRAINED = r"teacher(?:\.members\[\d+\]|\.routed\.teachers\.[^.]+)?"
_CALLS = {
    r"task": Call(("spec",)),
    rf"optim|{_TRAINED}\.train\.optim": Call(("params",)),
    rf"scheduler|{_TRAINED}\.train\.scheduler": Call(("optimizer",), ("total_steps",)),
    r"teacher\.ema": Call(("student", "task")),
    r"teacher\.cached": Call(("task", "data"), ("settings",)),
    r"teacher\.served": Call(("task",)),
    r"strategy": Call(("task",)),
    r"student\.classifier": Call(("backbone", "head", "grid", "example")),
    r"features\.[^.]+\.projector": Call(("student_shape", "teacher_shape")),
}
"""What kdkit passes besides the settings, by the path of the block; nothing elsewhere."""


def prepare(cfg: DictConfig, context: Context | None = None) -> DictConfig:
    """Drop what belongs to losses that are not chosen, then check everything.

    Args:
        cfg: composed settings, changed in place.
        context: how the command was called; without it nothing counts as typed.

    Returns:
        ``cfg``.

    Raises:
        ConfigError: one sentence about the first mistake.
    """
    context = context or Context("distill", recipes=recipes_dir())
    check_trust(cfg, context)
    _check_given(cfg)
    check_keys(_plain(cfg), context.recipes)
    if context.command != "evaluate":
        _prune(cfg, context)
    check(cfg, context)
    return cfg


def check(cfg: DictConfig, context: Context | None = None) -> None:
    """Bind every ``_target_`` and hold losses, weights, features, teacher and data against each other.

    Args:
        cfg: settings after :func:`prepare` has dropped what is not chosen.
        context: how the command was called.

    Raises:
        ConfigError: one sentence about the first mistake.
    """
    settings = _plain(cfg)
    check_numbers(settings)
    _check_network(settings)
    check_code_switches(settings, context)
    _bind_all({key: value for key, value in settings.items() if key != "chain"})
    if context is not None and context.command == "evaluate":
        return
    check_blocks(settings)
    if context is not None and context.command == "compare":
        return
    check_losses(settings)
    check_teacher_training(settings)
    if "network" not in settings:
        _check_links(settings, context.recipes if context is not None else recipes_dir())


def _bind_all(settings: Mapping[str, Any]) -> None:
    for path, block in blocks(settings, ""):
        call = next((call for pattern, call in _CALLS.items() if re.fullmatch(pattern, path)), Call())
        bind(path, block, call)


def _check_links(settings: Mapping[str, Any], recipes: Path) -> None:
    """Each link of a chain is a run of its own."""
    check_chain(settings)
    for name in settings.get("chain") or {}:
        link = link_settings(settings, name)
        try:
            check_keys(link, recipes)
            check_numbers(link)
            _bind_all(link)
            check_blocks(link)
            check_losses(link)
        except ConfigError as error:
            raise ConfigError(f"chain.{name}: {error}") from error


def _plain(cfg: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _check_network(settings: Mapping[str, Any]) -> None:
    network = settings.get("network", "student")
    if network not in ("student", "teacher"):
        raise ConfigError(f"network must be student or teacher, got {network!r}")
    if "network" in settings and (settings.get("student") or {}).get("classifier") is not None:
        raise ConfigError(
            "student.classifier is a teacher's, and kdkit train trains a network alone; use kdkit distill, or set "
            "student.classifier=null"
        )


def _check_given(cfg: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} must be given{_expected(cfg, missing[0])}; add {missing[0]}=…")


def _expected(cfg: DictConfig, key: str) -> str:
    """What belongs there, if the class that takes it says so."""
    block, _, name = key.rpartition(".")
    target = OmegaConf.select(cfg, f"{block}._target_") if block == "data" and name == "root" else None
    said = getattr(locate(target, where=block), "expected", None) if target else None
    return f": {said}" if said else ""


def _prune(cfg: DictConfig, context: Context) -> None:
    """An experiment may tune more losses than are chosen; their numbers go, misspelt names are refused."""
    folders = [context.recipes, *([context.config_dir] if context.config_dir else [])]
    recipes = _recipe_names(folders)
    with unlocked(cfg):
        for losses, weights in (("loss", "weights"), ("teacher_loss", "teacher_weights")):
            for name in [name for name, block in cfg[losses].items() if not _is_block(block)]:
                _refuse_unknown(f"{losses}.{name}", str(name), recipes, cfg[losses])
                del cfg[losses][name]
            for name in [name for name in cfg[weights] if name not in cfg[losses]]:
                _refuse_unknown(f"{weights}.{name}", str(name), recipes, cfg[losses])
                if any(re.match(rf"[+]*{weights}\.{re.escape(str(name))}[.=]", word) for word in context.overrides):
                    raise ConfigError(f"{weights}.{name} has no loss; choose it too: 'loss=[ce,{name}]'")
                del cfg[weights][name]
        if not _is_block(cfg.get("strategy")):
            cfg.strategy = None  # an experiment had numbers for one, and none was chosen
        teacher = cfg.get("teacher")
        for kind, mark in (("cached", "_target_"), ("served", "_target_"), ("routed", "combine")):
            if isinstance(teacher, DictConfig) and mark not in (teacher.get(kind) or {mark: None}):
                del teacher[kind]  # an experiment had a folder for it, and another teacher was chosen
        if isinstance(teacher, DictConfig) and set(teacher) <= {"train", "weights"}:
            cfg.teacher = None  # none was chosen; a debug profile or a loss had settings for one
        elif isinstance(teacher, DictConfig) and teacher.get("ema") is not None:
            _refuse_typed_teacher(context)
            cfg.teacher = {"ema": teacher.ema}  # a loss may ask for it whatever network an experiment chose
        elif isinstance(teacher, DictConfig):
            for kind in (kind for kind in ("cached", "served") if teacher.get(kind) is not None):
                cfg.teacher = {kind: teacher[kind]}  # an experiment may say how it would train a live one
            if teacher.get("routed") is not None:
                cfg.teacher = {key: teacher[key] for key in ("routed", "train") if key in teacher}
        _prune_tokenizer(cfg, context)


def _prune_tokenizer(cfg: DictConfig, context: Context) -> None:
    """An experiment may name the tokenizer of a teacher that was not chosen; one that was typed stays."""
    teacher, data = cfg.get("teacher") or {}, cfg.get("data") or {}
    typed = any(word.lstrip("+").startswith("data.teacher_tokenizer") for word in context.overrides)
    other = any(teacher.get(kind) is not None for kind in ("ema", "cached", "served", "routed"))
    if other and data.get("teacher_tokenizer") and not typed:
        cfg.data.teacher_tokenizer = None


def _refuse_typed_teacher(context: Context) -> None:
    if "compare" in (context.command, context.config_name):
        return  # other methods may learn from the teacher that was typed
    typed = [word for word in context.overrides if re.match(r"[+]*teacher(=(?!ema$)|\.(?!ema|train))", word)]
    if typed:
        raise ConfigError(
            f"{typed[0]} would change nothing: teacher.ema makes the teacher a moving average of the student; leave "
            "it out, or set teacher.ema=null"
        )


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping | DictConfig) and "_target_" in value


def _recipe_names(folders: list[Path]) -> set[str]:
    """Names of all loss recipes, and of the losses that they define."""
    names: set[str] = set()
    for option, file in group_options("loss", *folders).items():
        names |= {option, *_defined(file, file.stat().st_mtime_ns)}
    return names


@functools.lru_cache(maxsize=1024)
def _defined(file: Path, changed: int) -> frozenset[str]:
    """Names of the losses that a recipe defines; read again once it has changed."""
    content = OmegaConf.to_container(OmegaConf.load(file))
    return frozenset(map(str, content.get("loss") or {})) if isinstance(content, dict) else frozenset()


def _refuse_unknown(path: str, name: str, recipes: set[str], chosen: Iterable[Any]) -> None:
    if name in recipes:
        return
    kind = "is no block with a _target_" if "loss." in path else "has no loss"
    raise ConfigError(f"{path} {kind}{did_you_mean(name, {*map(str, chosen), *recipes} - {name})}")
