"""The work of ``kdkit train``: one network without a teacher."""

from __future__ import annotations

from functools import partial

from omegaconf import OmegaConf

from kdkit._files import sha256_json
from kdkit._run.build import build_network
from kdkit._run.distill import network_name
from kdkit._run.networks import Recipe, provide_alone, train_alone
from kdkit._run.session import Session
from kdkit._run.tokenizers import scene_of_teacher
from kdkit.engine.trainer import FitResult
from kdkit.errors import ConfigError
from kdkit.models._network import Network

__all__ = ["train_network"]


def train_network(session: Session) -> tuple[Network, FitResult, str]:
    """Train ``cfg.network`` (``student`` or ``teacher``).

    The teacher is trained by its own recipe and kept in the store, where ``kdkit distill`` finds it.

    Returns:
        The network, how the training went, and where the weights came from.
    """
    cfg = session.cfg
    role = str(cfg.get("network", "student"))
    if role not in ("student", "teacher"):
        raise ConfigError(f"network must be student or teacher, got {role!r}")
    if cfg[role] is None:
        raise ConfigError(f"network={role} needs a {role}; choose one with {role}=..., see `kdkit ls models`")
    return _teacher(session) if role == "teacher" else _student(session)


def _teacher(session: Session) -> tuple[Network, FitResult, str]:
    session.scene = scene_of_teacher(session.scene)
    cfg = session.scene.cfg
    trained = provide_alone(
        cfg.teacher,
        Recipe.of_teacher(cfg, cfg.teacher.train),
        session.scene,
        where="teacher",
        name=network_name(cfg.teacher),
        label="teacher",
        callbacks=session.progress(),
    )
    session.say(f"teacher {trained.network.name}: {trained.origin}")
    session.add_history(trained.history, "student")
    steps = int(trained.facts["steps"])
    fit = FitResult(steps, trained.seconds or 0.0, steps, trained.facts["validation"])
    return trained.network, fit, trained.origin


def _student(session: Session) -> tuple[Network, FitResult, str]:
    cfg, scene = session.cfg, session.scene
    recipe = Recipe.of_student(cfg)
    recipe.loss, recipe.weights = cfg.loss, cfg.weights
    name = network_name(cfg.student)
    network = build_network(cfg.student, scene, seed=recipe.seed, where="student", name=name)
    block = OmegaConf.to_container(cfg.student, resolve=True)
    identity = sha256_json({"student": block, "recipe": recipe.identity(), "data": scene.data.fingerprint})
    train = partial(train_alone, network, recipe, scene, data=scene.data, label="student", identity=identity)
    fit = train(folder=session.folder / "checkpoints", callbacks=session.listeners("student"), resume=session.resumed)
    names = " + ".join(str(name) for name in cfg.loss)
    return network, fit, f"trained by this run ({names}; {fit.steps:,} steps, {fit.seconds:.1f} s)"
