"""The teacher of a run: loaded, pretrained, out of the store, trained first, left random, or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf

from kdkit._config.build import instantiate
from kdkit._run.build import Scene, build_network
from kdkit._run.networks import Recipe, Trained, provide_alone
from kdkit._run.tokenizers import mark_teacher, scene_of_teacher
from kdkit.engine.callbacks import Callback
from kdkit.errors import ConfigError
from kdkit.models._build import origin_of
from kdkit.models._network import Network
from kdkit.teachers._base import Teacher
from kdkit.teachers._routes import shares_of, source_names

__all__ = ["Guide", "provide_average", "provide_teacher"]


@dataclass(slots=True)
class Guide:
    """What a run learns from.

    Attributes:
        teacher: answers batches; ``None`` when the teacher learns too.
        members: the networks behind it, with where their weights came from.
        learners: the networks that learn beside the student in online distillation, the teacher first.
    """

    teacher: Teacher | None
    members: list[Trained] = field(default_factory=list)
    learners: list[Network] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Where the weights came from, in words."""
        if self.teacher is not None and self.teacher.origin is not None:
            return self.teacher.origin
        if len(self.members) == 1:
            return self.members[0].origin
        return "; ".join(f"member {number}: {member.origin}" for number, member in enumerate(self.members, start=1))


def provide_teacher(cfg: DictConfig, scene: Scene, name: str, callbacks: Sequence[Callback]) -> Guide | None:
    """Build what ``cfg.teacher`` asks for, training what is missing.

    Returns:
        ``None`` without a teacher.
    """
    from kdkit.teachers import EnsembleTeacher, LiveTeacher, RoutedTeacher

    if cfg.teacher is None:
        return None
    if cfg.teacher.get("routed") is not None:
        shares_of(cfg.teacher.routed.routes, list(cfg.teacher.routed.teachers), source_names(scene.data.spec))
    reading = scene_of_teacher(scene)
    settings = cfg if reading is scene else reading.cfg
    members = [
        _member(block, settings, reading, own, number, callbacks)
        for number, (block, own) in enumerate(_blocks(settings.teacher, name))
    ]
    for member in members:
        mark_teacher(member.network, scene)
    if cfg.teacher_loss:
        return Guide(None, members, [member.network for member in members])
    teachers = [LiveTeacher(member.network, scene.task, name=member.network.name) for member in members]
    if cfg.teacher.get("routed") is not None:
        routed = OmegaConf.to_container(cfg.teacher.routed, resolve=True)
        assert isinstance(routed, dict)
        named = dict(zip(routed["teachers"], teachers, strict=True))
        return Guide(RoutedTeacher(named, routed["routes"], scene.task, combine=routed["combine"]), members)
    shares = cfg.teacher.get("shares")
    if len(teachers) == 1 and shares is None:
        return Guide(teachers[0], members)
    return Guide(EnsembleTeacher(teachers, shares=None if shares is None else list(shares)), members)


def provide_average(cfg: DictConfig, scene: Scene, student: Network) -> Guide:
    """The moving average of the student's own weights that ``cfg.teacher.ema`` describes."""
    teacher = instantiate(cfg.teacher.ema, student, scene.task, where="teacher.ema")
    return Guide(teacher, [Trained(teacher.network, "a moving average of the student's own weights")])


def _blocks(teacher: DictConfig, name: str) -> list[tuple[DictConfig, str]]:
    """Blocks and names of all members: ``ensemble`` copies of the teacher itself, then ``members``."""
    from kdkit._run.distill import network_name

    if teacher.get("routed") is not None:
        return [
            (_completed(block, teacher, None), f"{name} {network_name(block)}")
            for name, block in teacher.routed.teachers.items()
        ]
    copies = int(teacher.get("ensemble") or 1)
    if copies < 1:
        raise ConfigError(f"teacher.ensemble must be a whole number of at least 1, got {copies}")
    blocks = [(teacher, f"{name} #{number + 1}" if copies > 1 else name) for number in range(copies)]
    for member in teacher.get("members") or []:
        block = _completed(member, teacher, "random" if teacher.weights == "random" else None)
        blocks.append((block, network_name(block)))
    return blocks


def _completed(member: DictConfig, teacher: DictConfig, weights: str | None) -> DictConfig:
    """The block of a further teacher with what it leaves out."""
    own, train = OmegaConf.to_container(member, resolve=True), teacher.get("train")
    default = OmegaConf.to_container(train, resolve=True) if train is not None else None
    assert isinstance(own, dict)
    return OmegaConf.create({"weights": weights, "normalization": None, "input_size": None, "train": default} | own)


def _member(
    block: DictConfig, cfg: DictConfig, scene: Scene, name: str, number: int, callbacks: Sequence[Callback]
) -> Trained:
    where = "teacher" if number == 0 else f"teacher (member {number + 1})"
    if block.weights == "random":
        network = build_network(block, scene, seed=int(cfg.seed) + 1000 + number, where=where, name=name)
        role = "learns together with the student" if cfg.teacher_loss else "is never trained"
        return Trained(network, f"drawn at random from seed {int(cfg.seed) + 1000 + number}; {role}")
    if block.weights is not None:
        network = build_network(block, scene, seed=int(cfg.seed), where=where, name=name)
        source = "its pretrained weights" if block.weights == "pretrained" else str(block.weights)
        return Trained(network, f"loaded from {source}")
    if any(block.model.get(key) for key in ("pretrained", "weights")) or ":" in str(block.model.get("name", "")):
        network = build_network(block, scene, seed=int(cfg.seed), where=where, name=name)
        origin = origin_of(network.module)
        if origin is not None and origin.ready:
            return Trained(network, f"the pretrained weights of {origin.library}'s {name}, as they come")
    recipe = Recipe.of_teacher(cfg, block.train, number)
    return provide_alone(block, recipe, scene, where=where, name=name, label="teacher", callbacks=callbacks)
