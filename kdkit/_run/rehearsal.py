"""A rehearsal before the teacher is trained: what cannot be connected is refused before it costs anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import Tensor

from kdkit._run.build import Scene, build_network, build_objective
from kdkit._run.distill import build_distiller, network_name
from kdkit._run.networks import Trained
from kdkit._run.reuse import reuse_classifier
from kdkit._run.teacher import Guide
from kdkit._run.tokenizers import mark_teacher, scene_of_teacher
from kdkit.data._base import TextSpec
from kdkit.models._build import origin_of
from kdkit.objective import Objective
from kdkit.teachers._base import Teacher

__all__ = ["rehearse"]


def rehearse(cfg: DictConfig, scene: Scene, objective: Objective) -> None:
    """Connect the student with an untrained copy of a teacher that has yet to be trained, and throw both away.

    Losses on logits need no rehearsal: whatever they could miss shows in the settings.

    Raises:
        ConfigError, InputError: whatever connecting the trained teacher would raise.
    """
    teacher = cfg.teacher
    if teacher is None or cfg.teacher_loss or cfg.chain:
        return
    if (
        any(teacher.get(kind) is not None for kind in ("ema", "cached", "served", "routed"))
        or teacher.weights is not None
    ):
        return
    heads = any(loss.needs_heads for _, loss in objective)
    if not (objective.pairs or heads or cfg.student.get("classifier") is not None):
        return
    guide = _untrained(cfg, scene)
    if guide is None:
        return
    student = build_network(cfg.student, scene, seed=0, where="student", name=network_name(cfg.student))
    reuse_classifier(cfg.student, student, guide, scene)
    assert guide.teacher is not None
    fresh = build_objective(cfg.loss, cfg.weights, cfg.balance)
    distiller = build_distiller(scene, student, fresh, guide, _no_means(guide.teacher, scene)).eval()
    size = min(int(cfg.engine.batch_size), scene.data.size("train"))
    batch = next(iter(scene.data.batches("train", size, train=True, device=scene.device)))
    with torch.no_grad():
        distiller(batch, guide.teacher(batch), None, 0.0)


def _untrained(cfg: DictConfig, scene: Scene) -> Guide | None:
    """The teacher as it will be, without training; ``None`` for one that comes trained."""
    from kdkit.teachers import EnsembleTeacher, LiveTeacher

    own = scene_of_teacher(scene)
    block = own.cfg.teacher if own is not scene else cfg.teacher
    network = mark_teacher(build_network(block, own, seed=0, where="teacher", name=network_name(block)), scene)
    origin = origin_of(network.module)
    if origin is not None and origin.ready:
        return None
    teacher: Teacher = LiveTeacher(network, scene.task, name=network.name)
    several = int(cfg.teacher.get("ensemble") or 1) + len(cfg.teacher.get("members") or []) > 1
    members = [Trained(network, "untrained")] * (2 if several else 1)
    return Guide(EnsembleTeacher([teacher, teacher]) if several else teacher, members)


def _no_means(teacher: Teacher, scene: Scene) -> Callable[[str], Tensor]:
    """Class means of the right shape, without the pass over the data."""

    def means(pair: str) -> Tensor:
        spec = scene.data.spec
        assert not isinstance(spec, TextSpec)
        width = teacher(scene.probe_batch()).features[pair].shape[1]
        return torch.zeros(spec.num_classes, width, device=scene.device)

    return means
