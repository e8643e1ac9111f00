"""The work of ``kdkit distill``: teacher, baseline, student, projectors, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from kdkit._config.build import instantiate
from kdkit._files import sha256_json
from kdkit._run.build import (
    Scene,
    build_network,
    build_objective,
    build_projectors,
    check_views,
    make_optimizer,
    make_probe,
    make_scheduler,
    prepare_losses,
    quiet_forward,
    step_outputs,
)
from kdkit._run.cache import provide_cached
from kdkit._run.heads import fuse_heads, with_logits
from kdkit._run.networks import Recipe, Trained, provide_alone
from kdkit._run.reuse import reuse_classifier
from kdkit._run.sample_weights import identity_of, load_sample_weights
from kdkit._run.served import provide_served
from kdkit._run.session import Session
from kdkit._run.teacher import Guide, provide_average, provide_teacher
from kdkit.data._base import Batch
from kdkit.engine.callbacks import Callback
from kdkit.engine.distiller import Distiller, Learner
from kdkit.engine.rng import seed_everything
from kdkit.engine.settings import Settings
from kdkit.engine.trainer import FitResult, Trainer
from kdkit.errors import ConfigError
from kdkit.features.stages import resolve_layers
from kdkit.losses._base import Side
from kdkit.models._network import Network
from kdkit.objective import Objective
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks._strategy import Strategy
from kdkit.teachers._base import Teacher
from kdkit.teachers.store import Store

__all__ = ["Distilled", "build_distiller", "distill_networks", "fit_networks", "network_name"]


@dataclass(slots=True)
class Distilled:
    """What a distillation leaves in memory.

    Attributes:
        student: the trained student.
        fit: how the training went.
        guide: what it learnt from, ``None`` when no term needed a teacher.
        alone: the same student trained without a teacher, if it was asked for.
        origin: how the student came to be, in words.
        path: name and guide of everything on the way: the teacher, then the links of a chain; the last is ``guide``.
    """

    student: Network
    fit: FitResult
    guide: Guide | None
    alone: Trained | None
    origin: str
    path: list[tuple[str, Guide]]


def network_name(block: DictConfig) -> str:
    """What reports call a network: its own name, or its builder with the arguments that set it apart."""
    if block.get("routed") is not None:
        return f"routed({', '.join(map(str, block.routed.teachers))})"
    model = block.model
    for key in ("name", "model_name"):
        if model.get(key):
            return str(model[key])
    builder = str(model.get("model_type") or model.get("_target_", "network")).rsplit(".", 1)[-1]
    hidden = {"_target_", "model_type", "num_classes", "in_chans", "vocab_size", "image_size", "intermediate_size"}
    options = [f"{key}={value}" for key, value in model.items() if key not in hidden and isinstance(value, int | str)]
    return f"{builder}({', '.join(options[:3])})" if options else builder


def distill_networks(session: Session) -> Distilled:
    """Train whatever is missing, then the student."""
    cfg, scene = session.cfg, session.scene
    load_sample_weights(cfg.sample_weights, scene.data)  # a file that does not fit is refused before any training
    objective = build_objective(cfg.loss, cfg.weights, cfg.balance)
    check_views(objective, scene.data)
    strategy: Strategy | None = instantiate(cfg.strategy, scene.task, where="strategy")
    guided = bool(objective.needs("teacher")) or bool(cfg.teacher_loss)
    guided = guided or (strategy is not None and strategy.needs_teacher)
    if guided and not cfg.chain:
        from kdkit._run.rehearsal import rehearse

        rehearse(cfg, scene, objective)
    student = build_network(cfg.student, scene, seed=int(cfg.seed), where="student", name=network_name(cfg.student))
    first = _guide(session, student, objective, guided)
    path = [("teacher", first)] if first is not None else []
    if cfg.chain and not guided:
        session.say("no loss learns from a teacher, so the links of the chain are left out")
    elif cfg.chain and first is not None:
        from kdkit._run.chain import provide_chain

        path += provide_chain(session, first)
    guide = path[-1][1] if path else None
    alone = _baseline(session) if guided and cfg.engine.baseline else None
    teacher = guide.teacher if guide is not None and guided else None
    if strategy is not None:
        strategy.check(student, getattr(teacher, "network", None))
    seed_everything(int(cfg.seed), deterministic=bool(cfg.engine.deterministic))  # whatever was trained or found before
    reuse_classifier(cfg.student, student, guide, scene)
    distiller = build_distiller(scene, student, objective, guide if guided else None)
    seed_everything(int(cfg.seed), deterministic=bool(cfg.engine.deterministic))
    fit = fit_networks(
        session,
        scene,
        distiller,
        teacher,
        folder=session.checkpoints,
        identity=_identity(session, teacher),
        callbacks=session.listeners("student"),
        strategy=strategy,
    )
    if guide is not None and guide.learners:
        guide.teacher = _freeze(guide.learners[0], scene)
        for member in guide.members:
            member.origin += f", {fit.steps:,} steps"
    names = " + ".join(str(name) for name in cfg.loss)
    origin = f"trained by this run ({names}; {fit.steps:,} steps, {fit.seconds:.1f} s)"
    return Distilled(student, fit, guide, alone, origin, path)


def _guide(session: Session, student: Network, objective: Objective, guided: bool) -> Guide | None:
    """What the student learns from, made ready."""
    cfg, scene = session.cfg, session.scene
    if cfg.teacher is None:
        if guided:
            name = (objective.needs("teacher") or ["teacher_loss"])[0]
            raise ConfigError(f"loss {name!r} needs a teacher; choose one with teacher=..., or 'loss=[ce]' without")
        return None
    if cfg.teacher.get("cached") is not None:
        guide = provide_cached(cfg, scene, objective) if guided else None
    elif cfg.teacher.get("served") is not None:
        guide = provide_served(cfg, scene, objective) if guided else None
    elif cfg.teacher.get("ema") is not None:
        guide = provide_average(cfg, scene, student) if guided else None
    else:
        guide = provide_teacher(cfg, scene, network_name(cfg.teacher), session.progress())
    if guide is not None and guide.teacher is not None and guide.teacher.origin is not None:
        session.say(f"teacher {guide.teacher.name}: {guide.origin}")  # type: ignore[attr-defined]
    for member in guide.members if guide else []:
        session.say(f"teacher {member.network.name}: {member.origin}")
    return guide


def _freeze(network: Network, scene: Scene) -> Teacher:
    from kdkit.teachers import LiveTeacher

    return LiveTeacher(network, scene.task, name=network.name)


def _baseline(session: Session) -> Trained:
    cfg = session.cfg
    alone = provide_alone(
        cfg.student,
        Recipe.of_student(cfg),
        session.scene,
        where="student",
        name=network_name(cfg.student),
        label="student alone",
        callbacks=session.progress(),
    )
    session.say(f"student alone: {alone.origin}")
    session.add_history(alone.history, "student alone")
    return alone


def build_distiller(
    scene: Scene,
    student: Network,
    objective: Objective,
    guide: Guide | None,
    means: Callable[[str], Tensor] | None = None,
) -> Distiller:
    """Connect student and teacher: taps, shape checks, projectors, losses that fill themselves.

    ``means`` stands in for the teacher's class means by pair.
    """
    batch = scene.probe_batch()
    with_logits(student, *(member.network for member in (guide.members if guide is not None else [])))
    online = guide.learners if guide is not None else []
    own = [_objective_of_teacher(scene) for _ in online]
    layers = _tap(student, student, scene, objective.pairs.union(*map(_compared, own)), "student", batch)
    found: list[dict[str, str]] = []
    if guide is not None:
        for number, tapped in enumerate(online or [guide.teacher]):
            assert tapped is not None
            pairs = _compared(objective) if number == 0 else set()
            pairs |= own[number].pairs if online else set()
            if guide.members:
                found.append(_tap(tapped, guide.members[number].network, scene, pairs, "teacher", batch))
            else:
                tapped.tap({pair: str(scene.cfg.features[pair].teacher) for pair in pairs})
                found.append({})
    student_out = quiet_forward(student, scene, batch, "student")
    teachers = _teacher_outputs(scene, student_out, guide, batch) if guide is not None else [None]
    sides: dict[Side, tuple[Network, Mapping[str, str]]] = {"student": (student, layers)}
    if guide is not None and (online or len(guide.members) == 1):
        sides["teacher"] = (guide.members[0].network, found[0])
    means = means or _class_means(scene, guide, found[0] if found else {})
    outputs = step_outputs(scene, batch, student_out, teachers[0])
    learners = {"student": _learner(scene, objective, sides, outputs, means)}
    for number, (network, its) in enumerate(zip(online, own, strict=True)):
        sides = {"student": (network, found[number]), "teacher": (student, layers)}
        said = teachers[number]
        assert said is not None
        outputs = step_outputs(scene, batch, said, student_out)
        learners["teacher" if number == 0 else f"teacher{number + 1}"] = _learner(scene, its, sides, outputs, None)
    return Distiller(scene.task, learners)


def _compared(objective: Objective) -> set[str]:
    """Pairs of which both sides are read; losses without a teacher read the student's alone."""
    return {pair for _, loss in objective if loss.needs_teacher for pair in loss.pairs}


def _objective_of_teacher(scene: Scene) -> Objective:
    objective = build_objective(scene.cfg.teacher_loss, scene.cfg.teacher_weights, where="teacher_loss")
    check_views(objective, scene.data)
    return objective


def _teacher_outputs(scene: Scene, student: ModelOutput, guide: Guide, batch: Batch) -> Sequence[ModelOutput | None]:
    """What the teacher says, or every teacher that learns, held against the student and the data."""
    outputs = [quiet_forward(member.network, scene, batch, "teacher") for member in guide.members]
    outputs = [guide.teacher(batch)] if guide.teacher is not None else outputs
    for output in outputs:
        scene.task.check_outputs(student, output, batch)
        said = output.logits if output.sparse is None else output.sparse.log_probs
        if bool(torch.isnan(said).any()):
            raise ConfigError(
                "the teacher answers NaN to the first samples; if it was trained here, lower teacher.train.optim.lr, "
                "or else check teacher.weights"
            )
    return outputs


def _learner(
    scene: Scene,
    objective: Objective,
    sides: Mapping[Side, tuple[Network, Mapping[str, str]]],
    outputs: StepOutputs,
    means: Callable[[str], Tensor] | None,
) -> Learner:
    """A network with what it minimises and all that learns with it; ``sides`` as it sees them."""
    network = sides["student"][0]
    student, teacher = outputs.student, outputs.teacher
    projectors = build_projectors(scene.cfg, objective, student, teacher) if teacher is not None else {}
    learner = Learner(network, objective, projectors).to(scene.device)
    if objective.balance is not None:
        objective.balance.start([name for name, _ in objective], network.parameters())
    was_training = learner.training
    learner.eval()
    with torch.no_grad():
        prepare_losses(objective, scene, make_probe(scene, outputs, learner, sides, means))
    learner.train(was_training)
    return learner


def _tap(
    tapped: Network | Teacher, network: Network, scene: Scene, pairs: set[str], side: Side, batch: Batch
) -> dict[str, str]:
    """Tap the layers of these pairs; returns their names, stages resolved."""
    settings = {pair: scene.cfg.features[pair][side] for pair in sorted(pairs)}
    try:
        layers = resolve_layers(network.module, settings, lambda: quiet_forward(network, scene, batch, side))
        tapped.tap(layers)
    except ConfigError as error:
        names = " and ".join(f"features.{pair}.{side}={layer}" for pair, layer in settings.items())
        raise ConfigError(f"{names}: {error}") from error
    return layers


def _class_means(scene: Scene, guide: Guide | None, layers: dict[str, Any]) -> Callable[[str], Tensor] | None:
    """A function that gives the teacher's class means, out of the store when they are there."""
    if guide is None or guide.teacher is None:
        return None
    teacher = guide.teacher

    def means(pair: str) -> Tensor:
        from kdkit.teachers import class_means

        store = Store()
        definition = {"teacher": teacher.identity, "data": scene.data.fingerprint, "layer": layers[pair]}
        found = store.find("class_means", definition)
        if found is None:
            classes = scene.data.spec.num_classes  # type: ignore[union-attr]
            size = int(scene.cfg.engine.eval_batch_size or 4 * scene.cfg.engine.batch_size)
            value = class_means(teacher, scene.data, pair, classes, batch_size=size, device=scene.device)
            if scene.accelerator.is_main_process:
                store.put("class_means", definition, {"means.safetensors": {"means": value.cpu()}})
            return value
        return load_file(found / "means.safetensors")["means"].to(scene.device)

    return means


def _identity(session: Session, teacher: Teacher | None) -> str:
    """What this run is, so that a checkpoint of another one is refused."""
    keys = (
        "student",
        "teacher",
        "loss",
        "weights",
        "teacher_loss",
        "teacher_weights",
        "features",
        "optim",
        "scheduler",
        "balance",
        "chain",
        "strategy",
    )
    settings = Settings.from_config(OmegaConf.to_container(session.cfg.engine, resolve=True))  # type: ignore[arg-type]
    blocks = {key: OmegaConf.to_container(session.cfg[key], resolve=True) if session.cfg[key] else None for key in keys}
    if teacher is not None and not teacher.live:
        blocks["teacher"] = teacher.identity  # what the cache holds, wherever it lies
    data = session.scene.data.fingerprint
    blocks |= identity_of(session.cfg.sample_weights)
    return sha256_json({**blocks, "settings": settings.identity(), "data": data, "seed": int(session.cfg.seed)})


def fit_networks(
    session: Session,
    scene: Scene,
    distiller: Distiller,
    teacher: Teacher | None,
    *,
    folder: Path | None,
    identity: str,
    callbacks: Sequence[Callback],
    label: str = "student",
    strategy: Strategy | None = None,
) -> FitResult:
    """Train as the settings of ``scene`` say; ``folder`` takes the checkpoints."""
    cfg = scene.cfg
    settings = Settings.from_config(OmegaConf.to_container(cfg.engine, resolve=True))  # type: ignore[arg-type]
    if fuse_heads(scene, distiller, teacher):
        session.say("the losses read hidden states and heads: no batch of logits is held (task.fused_head)")
    if settings.compile_teacher and teacher is not None:
        teacher.compile()
    trainer = Trainer(
        distiller,
        task=scene.task,
        data=scene.data,
        settings=settings,
        optimizer=partial(make_optimizer, cfg.optim),
        scheduler=partial(make_scheduler, cfg.scheduler, cfg),
        accelerator=scene.accelerator,
        teacher=teacher,
        seed=int(cfg.seed),
        sample_weights=load_sample_weights(cfg.sample_weights, scene.data),
        folder=folder,
        identity=identity,
        callbacks=callbacks,
        label=label,
        strategy=strategy,
    )
    try:
        return trainer.fit(resume=session.resumed)
    finally:
        scene.accelerator.free_memory()
