"""Do losses, weights, features, teacher and data go together?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdkit._config.bind import bind
from kdkit._config.build import instantiate
from kdkit.errors import ConfigError, did_you_mean

__all__ = ["check_blocks", "check_losses", "check_teacher_training"]


def check_blocks(settings: Mapping[str, Any]) -> None:
    """The blocks without which nothing can be built."""
    for key, group in (("data", "data"), ("task", "task"), ("optim", "optim"), ("scheduler", "scheduler")):
        if not isinstance(settings.get(key), Mapping) or "_target_" not in settings[key]:
            raise ConfigError(
                f"{key} must be a block with a _target_, got {settings.get(key)!r}; choose one: {group}=…"
            )
    if not isinstance(settings.get("engine"), Mapping):
        raise ConfigError("engine must be a block of settings; choose one: engine=default")
    needed = "teacher" if settings.get("network") == "teacher" else "student"
    for key in ("student", "teacher"):
        block = settings.get(key)
        if block is None:
            if key == needed:
                raise ConfigError(f"{key} is null; choose one of `kdkit ls models`: {key}=…")
        elif not isinstance(block.get("model"), Mapping) or "_target_" not in block["model"]:
            raise ConfigError(f"{key}.model must be a block with a _target_, got {block.get('model')!r}")


def check_losses(settings: Mapping[str, Any]) -> None:
    """Names of losses and weights agree, and each loss finds what it needs."""
    if not settings["loss"]:
        raise ConfigError("there is no loss to train with; choose some: 'loss=[ce,kd]'")
    for losses, weights in (("loss", "weights"), ("teacher_loss", "teacher_weights")):
        for name in settings[weights]:
            if name not in settings[losses]:
                raise ConfigError(f"{weights}.{name} has no loss{did_you_mean(name, settings[losses])}")
        for name, block in settings[losses].items():
            if name not in settings[weights]:
                raise ConfigError(f"{losses}.{name} has no weight; add +{weights}.{name}=1.0")
            _check_weight(f"{weights}.{name}", settings[weights][name])
            _check_needs(f"{losses}.{name}", instantiate(block, where=f"{losses}.{name}"), settings)
    if settings["teacher_loss"] and settings.get("teacher") is None:
        raise ConfigError("teacher_loss is set, but there is no teacher that could learn; choose one: teacher=…")


def _check_weight(path: str, weight: Any) -> None:
    from kdkit.schedules import as_schedule

    if isinstance(weight, Mapping):
        weight = instantiate(weight, where=path)
    try:
        as_schedule(weight)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_needs(path: str, loss: Any, settings: Mapping[str, Any]) -> None:
    from kdkit.losses import DistillationLoss

    if not isinstance(loss, DistillationLoss):
        raise ConfigError(
            f"{path} must be a loss, got {type(loss).__name__}; derive it from kdkit.losses.DistillationLoss"
        )
    if loss.needs_teacher and "network" in settings:
        raise ConfigError(f"{path} learns from a teacher, and kdkit train trains a network alone; use kdkit distill")
    if loss.needs_teacher and settings.get("teacher") is None:
        raise ConfigError(
            f"{path} learns from a teacher and there is none; choose one with teacher=…, or losses that need none, "
            f"like 'loss=[ce]'"
        )
    if loss.needs_class_means and settings["teacher_loss"]:
        raise ConfigError(
            f"{path} needs class means of a teacher that stays as it is, and this one learns "
            f"(teacher_loss={list(settings['teacher_loss'])}); leave one of the two out"
        )
    if (loss.needs_labels or loss.needs_class_means) and settings["data"].get("labels") == 0:
        raise ConfigError(
            f"{path} needs labels and data.labels=0 leaves none; set data.labels=null, or leave this loss out"
        )
    for pair in loss.pairs:
        _check_pair(path, pair, settings.get("features") or {})


def _check_pair(path: str, pair: str, features: Mapping[str, Any]) -> None:
    if pair not in features:
        raise ConfigError(f"{path} reads the feature pair {pair!r}, unknown to features{did_you_mean(pair, features)}")
    for side in ("student", "teacher"):
        layer = (features[pair] or {}).get(side)
        if not isinstance(layer, str):
            raise ConfigError(f"features.{pair}.{side} must name a layer of `kdkit ls layers`, got {layer!r}")


def check_teacher_training(settings: Mapping[str, Any]) -> None:
    """A teacher without weights is trained first: its recipe has to be complete."""
    teacher, network = settings.get("teacher"), settings.get("network")
    if teacher is None or network == "student" or (teacher.get("weights") is not None and network is None):
        return
    train = teacher.get("train")
    if not isinstance(train, Mapping):
        raise ConfigError(
            "teacher.weights is null, so the teacher is trained first, but teacher.train is missing; give "
            "a file with teacher.weights=… or a recipe in teacher.train"
        )
    for key in ("optim", "scheduler"):
        if not isinstance(train.get(key), Mapping) or "_target_" not in train[key]:
            raise ConfigError(f"teacher.train.{key} must be a block with a _target_, got {train.get(key)!r}")
    merged = {**settings["data"], **(train.get("data") or {})}
    bind("teacher.train.data", merged)
