"""Do losses, weights, features, teacher and data go together?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdkit._config.bind import bind
from kdkit._config.build import instantiate
from kdkit._config.tokenizers import check_tokenizers
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
        elif key == "teacher" and block.get("ema") is not None:
            _check_average(block["ema"], needed)
        elif key == "teacher" and _answers(block):
            _check_answers(_answers(block), block, needed)
        elif key == "teacher" and block.get("routed") is not None:
            _check_routed(block["routed"], needed)
        elif not isinstance(block.get("model"), Mapping) or "_target_" not in block["model"]:
            raise ConfigError(f"{key}.model must be a block with a _target_, got {block.get('model')!r}")


def _check_average(ema: Any, needed: str) -> None:
    if not isinstance(ema, Mapping) or "_target_" not in ema:
        raise ConfigError(f"teacher.ema must be a block with a _target_, got {ema!r}; choose it with teacher=ema")
    if needed == "teacher":
        raise ConfigError("teacher.ema is an average of the student and cannot be trained by itself; choose a network")


def _answers(teacher: Mapping[str, Any] | None) -> str:
    """Which kind of teacher has its answers here and no network: "cached", "served", or "" for none."""
    return next((kind for kind in ("cached", "served") if (teacher or {}).get(kind) is not None), "")


def _check_answers(kind: str, teacher: Mapping[str, Any], needed: str) -> None:
    block = teacher[kind]
    if not isinstance(block, Mapping) or "_target_" not in block:
        raise ConfigError(
            f"teacher.{kind} must be a block with a _target_, got {block!r}; choose it with teacher={kind}"
        )
    if needed == "teacher":
        what = "a file of answers" if kind == "cached" else "behind a server"
        raise ConfigError(f"teacher.{kind} is {what} and cannot be trained; choose a network")


def _check_routed(routed: Any, needed: str) -> None:
    from kdkit.teachers._routes import check_routes

    if needed == "teacher":
        raise ConfigError("teacher.routed is several networks; train each by itself, as a teacher of its own")
    teachers = routed.get("teachers")
    if not isinstance(teachers, Mapping) or not teachers:
        raise ConfigError(
            f"teacher.routed.teachers must name at least one teacher and its block, got {teachers!r}; a block is like "
            "teacher, with a model"
        )
    for name, block in teachers.items():
        model = (block or {}).get("model")
        if not isinstance(model, Mapping) or "_target_" not in model:
            raise ConfigError(f"teacher.routed.teachers.{name}.model must be a block with a _target_, got {model!r}")
    check_routes(routed.get("routes"), list(teachers))


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
    built = {name: instantiate(block) for name, block in settings["loss"].items()}
    check_tokenizers(settings, built)
    _check_fused(settings, built)
    if settings["data"].get("strong") is not None and settings["data"].get("views") == 1:
        raise ConfigError("data.strong is what the second view of an image gets, and data.views=1; set data.views=2")
    if settings.get("strategy") is not None:
        _check_strategy(settings)
    if settings["teacher_loss"] and settings.get("teacher") is None:
        raise ConfigError("teacher_loss is set, but there is no teacher that could learn; choose one: teacher=…")
    if (settings.get("student") or {}).get("classifier") and (settings.get("teacher") or {}).get("ema") is not None:
        raise ConfigError(
            "student.classifier takes the teacher's, and teacher.ema makes the teacher an average of the student; "
            "leave one of the two out"
        )
    if settings["teacher_loss"] and (settings.get("teacher") or {}).get("routed") is not None:
        raise ConfigError(
            f"teacher_loss={list(settings['teacher_loss'])} lets the teacher learn, and teacher.routed has several "
            "that stay as they are; leave one of the two out"
        )
    _check_shares(settings.get("teacher") or {}, settings["teacher_loss"])
    kind = _answers(settings.get("teacher"))
    if settings.get("chain") and kind:
        raise ConfigError(
            f"chain trains several students from a teacher in memory, and teacher.{kind} has its answers only; leave "
            "one of the two out"
        )
    if settings["teacher_loss"] and kind:
        raise ConfigError(
            f"teacher_loss={list(settings['teacher_loss'])} lets the teacher learn, and teacher.{kind} has its answers "
            "only; leave one of the two out"
        )
    if settings["teacher_loss"] and settings["teacher"].get("ema") is not None:
        raise ConfigError(
            f"teacher_loss={list(settings['teacher_loss'])} lets the teacher learn, and teacher.ema makes it follow "
            "the student; leave one of the two out"
        )


def _check_fused(settings: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
    """What is known to stand in the way of ``task.fused_head=true`` before a teacher is trained."""
    from kdkit.losses._from_heads import head_term, reads_logits

    if (settings.get("task") or {}).get("fused_head") is not True:
        return
    teacher = settings.get("teacher") or {}
    several = teacher.get("routed") or teacher.get("members") or (teacher.get("ensemble") or 1) > 1
    reading = [name for name, loss in losses.items() if head_term(loss) is None and reads_logits(loss)]
    sparse = [name for name, loss in losses.items() if loss.reads_sparse and not _answers(teacher)]
    reason = None
    if reading:
        reason = f"loss.{reading[0]} reads logits"
    elif settings["teacher_loss"]:
        reason = "the teacher learns too, and each network reads the other's logits"
    elif settings.get("balance"):
        reason = "balance weighs terms by gradients of their own"
    elif sparse:
        reason = f"loss.{sparse[0]} takes the best entries out of the teacher's logits"
    elif several and any(loss.needs_teacher for loss in losses.values()):
        reason = "the teacher is not one language model"
    if reason is not None:
        raise ConfigError(f"task.fused_head=true cannot be: {reason}; set task.fused_head=auto, or change that")


def _check_shares(teacher: Mapping[str, Any], learns: Any) -> None:
    """Shares of an ensemble are known to be wrong before its members are trained."""
    from kdkit.teachers.ensemble import checked_shares

    shares = teacher.get("shares")
    if shares is None:
        return
    if learns:
        raise ConfigError("teacher.shares weighs teachers that stay as they are, and these learn; leave it out")
    checked_shares(shares, int(teacher.get("ensemble") or 1) + len(teacher.get("members") or []))


def _check_strategy(settings: Mapping[str, Any]) -> None:
    """Whether texts that are written while training fit the rest."""
    if "network" in settings:
        raise ConfigError("strategy changes what a student is taught on, and kdkit train has no teacher; leave it out")
    if settings.get("chain"):
        raise ConfigError("strategy is for one student, and chain trains several; leave one of the two out")
    teacher = settings.get("teacher") or {}
    if teacher.get("cached") is not None:
        raise ConfigError(
            "strategy has texts written that teacher=cached was never asked about; choose a teacher in memory, or "
            "strategy=none"
        )
    built = {name: instantiate(block, where=f"loss.{name}") for name, block in settings["loss"].items()}
    if settings["strategy"].get("writer") == "student" and not any(loss.needs_teacher for loss in built.values()):
        raise ConfigError(
            "strategy.writer=student has no labels for what the student writes, and no loss learns from a teacher; add "
            "one, like 'loss=[ce,js]', or set strategy=none"
        )
    alone = (
        not teacher
        or _answers(teacher)
        or teacher.get("routed")
        or teacher.get("members")
        or (teacher.get("ensemble") or 1) > 1
    )
    if settings["strategy"].get("writer") == "teacher" and (alone or teacher.get("ema") or settings["teacher_loss"]):
        raise ConfigError(
            "strategy.writer=teacher needs one teacher that does not learn; choose it with teacher=…, or set "
            "strategy.writer=student"
        )
    for name, loss in built.items():
        if loss.needs_index:
            raise ConfigError(
                f"loss.{name} remembers each sample of the data, and strategy replaces them; leave one of the two out"
            )


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
    _check_reads_of_teacher(path, loss, settings)
    views = settings["data"].get("views")
    if views is not None and loss.needs_views > views:
        raise ConfigError(
            f"{path} compares {loss.needs_views} views of each image and data.views={views}; set "
            f"data.views={loss.needs_views}, or leave this loss out"
        )
    if (loss.needs_labels or loss.needs_class_means) and settings["data"].get("labels") == 0:
        raise ConfigError(
            f"{path} needs labels and data.labels=0 leaves none; set data.labels=null, or leave this loss out"
        )
    if loss.pairs and "network" in settings:
        raise ConfigError(
            f"{path} reads features ({', '.join(loss.pairs)}), which kdkit train does not tap; use kdkit distill "
            "teacher=none"
        )
    for pair in loss.pairs:
        _check_pair(path, pair, settings.get("features") or {})


def _check_reads_of_teacher(path: str, loss: Any, settings: Mapping[str, Any]) -> None:
    """Whether the kind of teacher has what a loss reads of it besides logits."""
    teacher = settings.get("teacher") or {}
    kind, inside = _answers(teacher), loss.pairs or loss.needs_class_means or "teacher" in loss.needs_heads
    if teacher.get("routed") is not None and loss.needs_teacher and inside:
        raise ConfigError(
            f"{path} reads features or weights of one teacher, and teacher=routed has several; choose losses on "
            "logits, or one teacher"
        )
    if kind and loss.needs_teacher and inside:
        raise ConfigError(
            f"{path} reads features or weights of the teacher, and teacher={kind} has its answers only; choose losses "
            "on logits, or the teacher itself"
        )
    if loss.needs_class_means and settings["teacher_loss"]:
        raise ConfigError(
            f"{path} needs class means of a teacher that stays as it is, and this one learns "
            f"(teacher_loss={list(settings['teacher_loss'])}); leave one of the two out"
        )
    if loss.needs_class_means and teacher.get("ema") is not None:
        raise ConfigError(
            f"{path} needs class means of a teacher that stays as it is, and teacher.ema follows the student; leave "
            "one of the two out"
        )


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
    if teacher is None or teacher.get("ema") or _answers(teacher) or network == "student":
        return
    if teacher.get("weights") is not None and network is None:
        return
    if teacher.get("routed") is not None and all(
        block.get("weights") is not None for block in teacher["routed"]["teachers"].values()
    ):
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
