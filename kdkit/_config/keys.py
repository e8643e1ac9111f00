"""Keys that exist and values in range: what Hydra's struct mode cannot see in a yaml file of the user's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdkit.errors import ConfigError, did_you_mean

__all__ = ["WHOLE_RUN", "check_keys", "check_numbers"]

_NETWORK = ("model", "weights", "normalization", "input_size")
_TEACHER = (*_NETWORK, "ensemble", "shares", "members", "train", "ema", "cached", "served", "routed")
_ROUTED = ("teachers", "routes", "combine")
_TRAIN = ("seed", "epochs", "max_steps", "batch_size", "optim", "scheduler", "data", "engine")
_FEATURE = ("student", "teacher", "projector")
WHOLE_RUN = frozenset({"precision", "device", "threads", "deterministic", "progress", "baseline", "export", "report"})
"""Settings of the engine that a training inside of a run cannot change."""

_SEED = 2**31 - 1
_LEAVES = frozenset({"defaults", "hydra"})


def check_keys(cfg: Mapping[str, Any], recipes: Path) -> None:
    """Refuse the first key that kdkit would ignore.

    What may stand at the top and in ``engine`` and ``spec`` is what the recipes there hold; blocks with a
    ``_target_`` are compared with its signature elsewhere.

    Args:
        cfg: plain settings.
        recipes: kdkit's recipes.
    """
    base = _keys(recipes / "config.yaml")
    commands = {key for file in sorted(recipes.glob("*.yaml")) for key in _keys(file)}
    _known("", {key: value for key, value in cfg.items() if key not in commands}, base)
    _known("spec", cfg.get("spec"), base["spec"])
    engine = _keys(recipes / "engine" / "default.yaml")
    _known("engine", cfg.get("engine"), engine)
    for pair, block in (cfg.get("features") or {}).items():
        _known(f"features.{pair}", block, _FEATURE)
    _known("student", cfg.get("student"), (*_NETWORK, "classifier"))
    teacher = cfg.get("teacher")
    _known("teacher", teacher, _TEACHER)
    if isinstance(teacher, Mapping):
        _train("teacher.train", teacher.get("train"), engine)
        members = teacher.get("members") or []
        if not isinstance(members, list):
            raise ConfigError(f"teacher.members must be a list of blocks like teacher, got {members!r}")
        for place, member in enumerate(members):
            _known(f"teacher.members[{place}]", member, (*_NETWORK, "train"))
            _train(f"teacher.members[{place}].train", (member or {}).get("train"), engine)
        _routed("teacher.routed", teacher.get("routed"), engine)


def _routed(path: str, block: Any, engine: Mapping[str, Any]) -> None:
    _known(path, block, _ROUTED)
    teachers = (block or {}).get("teachers")
    _known(f"{path}.teachers", teachers, teachers or ())
    for name, member in (teachers or {}).items():
        _known(f"{path}.teachers.{name}", member, (*_NETWORK, "train"))
        _train(f"{path}.teachers.{name}.train", (member or {}).get("train"), engine)


def _train(path: str, block: Any, engine: Mapping[str, Any]) -> None:
    _known(path, block, _TRAIN)
    own = (block or {}).get("engine")
    _known(f"{path}.engine", own, engine)
    for key in (key for key in own or {} if key in WHOLE_RUN):
        raise ConfigError(f"{path}.engine.{key} would change nothing: engine.{key} holds for the whole run; set that")


@functools.cache
def _keys(file: Path) -> dict[str, Any]:
    """Content of a recipe, without what is addressed to Hydra."""
    content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key not in _LEAVES}


def _known(path: str, block: Any, names: Iterable[str]) -> None:
    if block is None:
        return
    if not isinstance(block, Mapping):
        raise ConfigError(f"{path} must be a block of settings or null, got {block!r}")
    for key in block:
        if key not in set(names):
            owner = f"{path} has no" if path else "there is no"
            raise ConfigError(f"{owner} setting {key!r}{did_you_mean(str(key), names)}")


def check_numbers(cfg: Mapping[str, Any]) -> None:
    """Refuse the first number out of range, by the name of its setting."""
    _whole("seed", cfg.get("seed", 0), least=0, most=_SEED)
    for key in ("student", "teacher"):
        if (cfg.get(key) or {}).get("input_size") is not None:
            _whole(f"{key}.input_size", cfg[key]["input_size"], least=1)
    _engine("engine", cfg.get("engine") or {})
    train = (cfg.get("teacher") or {}).get("train") or {}
    if train:
        _whole("teacher.train.seed", train.get("seed", 0), least=0, most=_SEED)
        _engine("teacher.train", train)
        _engine("teacher.train.engine", train.get("engine") or {})
    ensemble = (cfg.get("teacher") or {}).get("ensemble")
    if ensemble is not None:
        _whole("teacher.ensemble", ensemble, least=1)


def _engine(path: str, engine: Mapping[str, Any]) -> None:
    for key in ("batch_size", "eval_batch_size", "accumulation", "max_steps", "epochs", "keep", "log_every", "threads"):
        if engine.get(key) is not None and not (key == "epochs" and engine.get("max_steps")):
            _whole(f"{path}.{key}", engine[key], least=1)
    for key in ("eval_every", "checkpoint_every"):
        if engine.get(key) is not None:
            _whole(f"{path}.{key}", engine[key], least=0)
    if "epochs" in engine and engine["epochs"] is None and engine.get("max_steps") is None:
        raise ConfigError(f"{path}.epochs and {path}.max_steps are both null; set one of them")
    ema, clip = engine.get("ema"), engine.get("grad_clip")
    if ema is not None and not (_number(ema) and 0.0 < ema < 1.0):
        raise ConfigError(f"{path}.ema must be a decay between 0 and 1, both excluded, or null; got {ema!r}")
    if clip is not None and not (_number(clip) and clip > 0.0):
        raise ConfigError(f"{path}.grad_clip must be a positive number or null; got {clip!r}")
    choices = {
        "precision": ("no", "bf16", "fp16"),
        "device": ("auto", "cpu", "cuda"),
        "select": ("last", "best"),
        "progress": ("auto", "rich", "plain", "none"),
    }
    for key, options in choices.items():
        if engine.get(key) is not None and engine[key] not in options:
            text = f"{path}.{key} must be one of {', '.join(options)}, got {engine[key]!r}"
            raise ConfigError(text + ("; in yaml write it with quotes" if engine[key] is False else ""))
    for key in ("compile", "compile_teacher", "channels_last", "deterministic", "baseline", "export", "report"):
        if engine.get(key) is not None and not isinstance(engine[key], bool):
            raise ConfigError(f"{path}.{key} must be true or false, got {engine[key]!r}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(path: str, value: Any, *, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{path} must be a whole number of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise ConfigError(f"{path} must be a whole number of at most {most}, got {value!r}")
