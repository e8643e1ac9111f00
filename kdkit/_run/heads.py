"""Whether a training does without logits: its losses then read hidden states and heads."""

from __future__ import annotations

from accelerate import DistributedType

from kdkit._run.build import Scene
from kdkit.engine.distiller import Distiller
from kdkit.errors import ConfigError
from kdkit.models._language import LanguageNetwork
from kdkit.models._network import Network
from kdkit.tasks import CausalLM
from kdkit.teachers._base import Teacher
from kdkit.teachers.cached import CachedTeacher
from kdkit.teachers.served import ServedTeacher

__all__ = ["LARGE", "fuse_heads", "with_logits"]

LARGE = 256 * 2**20
"""Bytes of float32 logits of a batch from which on "auto" does without them."""


def fuse_heads(scene: Scene, distiller: Distiller, teacher: Teacher | None) -> bool:
    """Let student and teacher hand out hidden states and heads, if the task wants it and all terms can do with them.

    Returns:
        Whether they do.

    Raises:
        ConfigError: for ``task.fused_head=true`` where something stands in the way.
    """
    task = scene.task
    with_logits(*(learner.network for _, learner in distiller.items()), getattr(teacher, "network", None))
    if not isinstance(task, CausalLM) or task.fused_head is False:
        return False
    if task.fused_head == "auto" and _bytes(scene) <= LARGE:
        return False
    reason = _obstacle(scene, distiller, teacher)
    if reason is None:
        try:
            _fuse(scene, distiller, teacher)
        except ConfigError as error:
            reason = str(error)
    if reason is not None and task.fused_head is True:
        raise ConfigError(f"task.fused_head=true cannot be: {reason}; set task.fused_head=auto, or change that")
    return reason is None


def with_logits(*networks: Network | None) -> None:
    """Let these hand out logits again."""
    for network in networks:
        if isinstance(network, LanguageNetwork):
            network.unfuse()


def _bytes(scene: Scene) -> int:
    """What the logits of a batch take in float32."""
    spec = scene.data.spec
    return 4 * int(scene.cfg.engine.batch_size) * spec.context * spec.vocab_size  # type: ignore[union-attr]


def _obstacle(scene: Scene, distiller: Distiller, teacher: Teacher | None) -> str | None:
    if isinstance(scene.task, CausalLM) and scene.task.cuts_padding:
        return "the vocabularies of student and teacher are padded differently"
    if distiller.online:
        return "the teacher learns too, and each network reads the other's logits"
    if scene.accelerator.distributed_type == DistributedType.FSDP:
        return "FSDP keeps the weight of the head in pieces"
    objective = distiller.student.objective
    reason = objective.without_logits()
    if reason is not None or not objective.needs("teacher"):
        return reason
    if isinstance(teacher, CachedTeacher | ServedTeacher):
        kind = "cached" if isinstance(teacher, CachedTeacher) else "served"
        others = [name for name, loss in objective if loss.needs_teacher and not loss.reads_sparse and not loss.pairs]
        return f"loss.{others[0]} reads logits, and teacher={kind} has no head" if others else None
    if not isinstance(getattr(teacher, "network", None), LanguageNetwork):
        return "the teacher is not one language model"
    sparse = [name for name, loss in objective if loss.reads_sparse]
    return f"loss.{sparse[0]} takes the best entries out of the teacher's logits" if sparse else None


def _fuse(scene: Scene, distiller: Distiller, teacher: Teacher | None) -> None:
    batch = scene.task.example(scene.probe_batch())
    student, other = distiller.student.network, getattr(teacher, "network", None)
    networks = [student, *([other] if isinstance(other, LanguageNetwork) else [])]
    try:
        with scene.accelerator.autocast():
            for network in networks:
                network.to(scene.device).fuse(scene.task.inputs(network, batch))  # type: ignore[operator]
    except ConfigError:
        with_logits(*networks)
        raise
