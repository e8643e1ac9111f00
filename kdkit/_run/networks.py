"""Networks trained alone, kept by the hash of what defines them: missing teachers and the student's baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from kdkit._config.build import instantiate
from kdkit._files import read_jsonl, to_json
from kdkit._run.build import (
    Scene,
    build_network,
    build_objective,
    check_views,
    make_optimizer,
    make_probe,
    make_scheduler,
    prepare_losses,
    quiet_forward,
    step_outputs,
)
from kdkit._run.heads import fuse_heads, with_logits
from kdkit._run.sample_weights import identity_of, load_sample_weights
from kdkit._run.tokenizers import as_teacher_reads
from kdkit.data._base import DataModule
from kdkit.engine.callbacks import Callback, Recorder
from kdkit.engine.distiller import Distiller, Learner
from kdkit.engine.rng import seed_everything
from kdkit.engine.settings import Settings
from kdkit.engine.trainer import FitResult, Trainer
from kdkit.errors import ConfigError
from kdkit.models._network import Network
from kdkit.teachers.store import Content, Store

__all__ = ["Recipe", "Trained", "every_rank", "provide_alone", "train_alone"]

_ALONE = "the run's own recipe with cross-entropy alone"
_CE = {"ce": {"_target_": "kdkit.losses.CELoss"}}


@dataclass(slots=True)
class Recipe:
    """How a network is trained alone.

    Attributes:
        settings: length, batch size and so on.
        optim: ``optim`` block.
        scheduler: ``scheduler`` block.
        seed: weights, order and augmentation.
        data: settings of the data that differ from the run's (a teacher may have seen more labels).
        loss: ``loss`` block, cross-entropy unless told otherwise.
        weights: ``weights`` block.
        words: what to call it.
        sample_weights: setting of :func:`kdkit._run.sample_weights.load_sample_weights`.
    """

    settings: Settings
    optim: DictConfig
    scheduler: DictConfig
    seed: int
    data: dict[str, Any] = field(default_factory=dict)
    loss: Any = field(default_factory=lambda: OmegaConf.create(_CE))
    weights: Any = field(default_factory=lambda: OmegaConf.create({"ce": 1.0}))
    words: str = "its own recipe"
    sample_weights: str | None = None

    @classmethod
    def of_student(cls, cfg: DictConfig) -> Recipe:
        """The run's own optimizer, schedule, length and seed with cross-entropy alone."""
        settings = Settings.from_config(_plain(cfg.engine))
        recipe = cls(settings, cfg.optim, cfg.scheduler, int(cfg.seed), words=_ALONE)
        recipe.sample_weights = cfg.sample_weights
        return recipe

    @classmethod
    def of_teacher(cls, cfg: DictConfig, train: DictConfig, member: int = 0) -> Recipe:
        """The teacher's own recipe, its ``train`` block; what it leaves out is the engine's default.

        It does not depend on the student's optimizer or length, so that a sweep over those keeps its teacher.
        """
        neutral = {"grad_clip": None, "ema": None, "select": "last", "accumulation": 1}
        engine = {**_plain(cfg.engine), **neutral, "eval_every": 0, "checkpoint_every": 0}
        engine |= {key: train[key] for key in ("epochs", "max_steps", "batch_size") if train.get(key) is not None}
        if train.get("max_steps") is None:
            engine["max_steps"] = None
        engine |= _plain(train.get("engine")) or {}
        settings = Settings.from_config(engine)
        data = _plain(train.get("data")) or {}
        if cfg.data.get("views", 1) != 1:
            data = {"views": 1, **data}  # the second view belongs to the losses of the student
        return cls(settings, train.optim, train.scheduler, int(train.seed) + member, data)

    def identity(self) -> dict[str, Any]:
        """What decides the weights that come out."""
        return {
            "settings": self.settings.identity(),
            "optim": _plain(self.optim),
            "scheduler": _plain(self.scheduler),
            "seed": self.seed,
            "loss": _plain(self.loss),
            "weights": _plain(self.weights),
            **identity_of(self.sample_weights),
        }


@dataclass(slots=True)
class Trained:
    """A network with weights and where they came from.

    Attributes:
        network: ready to use.
        origin: a sentence for people.
        key: of the store, or ``None``.
        seconds: training time, ``None`` when unknown.
        history: records of ``metrics.jsonl``.
        facts: ``steps``, ``seconds`` and last ``validation`` metrics of the training.
    """

    network: Network
    origin: str
    key: str | None = None
    seconds: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _data(scene: Scene, recipe: Recipe) -> DataModule:
    if not recipe.data:
        return scene.data
    block = OmegaConf.merge(scene.cfg.data, OmegaConf.create(recipe.data))
    return as_teacher_reads(instantiate(block, where="teacher.train.data"))


def train_alone(
    network: Network,
    recipe: Recipe,
    scene: Scene,
    *,
    data: DataModule,
    label: str,
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
    identity: str = "",
    resume: bool = False,
) -> FitResult:
    """Train a network without a teacher."""
    seed_everything(recipe.seed, deterministic=bool(scene.cfg.engine.deterministic))
    objective = build_objective(recipe.loss, recipe.weights).to(scene.device)
    if objective.needs("teacher"):
        name = objective.needs("teacher")[0]
        raise ConfigError(f"loss {name!r} needs a teacher and this network is trained alone; use 'loss=[ce]'")
    check_views(objective, data)
    batch = scene.probe_batch()
    output = quiet_forward(network, scene, batch, "teacher" if label == "teacher" else "student")
    scene.task.check_outputs(output, None, batch)
    learner = Learner(network, objective)
    own = Scene(scene.cfg, data, scene.task, scene.accelerator)
    with torch.no_grad():
        probe = make_probe(own, step_outputs(own, batch, output, None), learner, {"student": (network, {})}, None)
        prepare_losses(objective, own, probe)
    distiller = Distiller(scene.task, {"student": learner})
    fuse_heads(own, distiller, None)
    trainer = Trainer(
        distiller,
        task=scene.task,
        data=data,
        settings=recipe.settings,
        optimizer=partial(make_optimizer, recipe.optim),
        scheduler=partial(make_scheduler, recipe.scheduler, scene.cfg),
        accelerator=scene.accelerator,
        seed=recipe.seed,
        sample_weights=load_sample_weights(recipe.sample_weights, data),
        folder=folder,
        identity=identity,
        callbacks=callbacks,
        label=label,
    )
    try:
        return trainer.fit(resume=resume)
    finally:
        with_logits(network)
        scene.accelerator.free_memory()


def provide_alone(
    block: DictConfig,
    recipe: Recipe,
    scene: Scene,
    *,
    where: str,
    name: str,
    label: str,
    callbacks: Sequence[Callback] = (),
    store: Store | None = None,
) -> Trained:
    """The network of a block with the weights its recipe gives: out of the store, or trained now and put there.

    Args:
        block: network block; its ``weights`` are taken as the start of the training.
        recipe: how it is trained.
        scene: data, task, device.
        where: name of the block in messages.
        name: how the network is called.
        label: what progress and records call the training.
        callbacks: progress display.
        store: where trained networks are kept.
    """
    store = store or Store()
    accelerator = scene.accelerator
    data = _data(scene, recipe)
    definition = {
        "network": {key: _plain(block.get(key)) for key in ("model", "weights", "normalization", "input_size")},
        "task": scene.task.name,
        "data": data.fingerprint,
        "recipe": recipe.identity(),
        "processes": accelerator.num_processes,
        "torch": torch.__version__.split("+")[0],
    }
    network = build_network(block, scene, seed=recipe.seed, where=where, name=name)
    found = store.find("networks", definition)
    trained_now = not every_rank(accelerator, found is not None)
    if trained_now:
        with TemporaryDirectory() as scratch:
            records = Path(scratch) / "metrics.jsonl"
            listeners = [*callbacks, Recorder(records, label)]
            result = train_alone(network, recipe, scene, data=data, label=label, callbacks=listeners)
            if accelerator.is_main_process:
                facts = {"seconds": result.seconds, "steps": result.steps, "validation": result.validation}
                tensors = {key: value.detach().cpu().clone() for key, value in network.module.state_dict().items()}
                files: dict[str, Content] = {"model.safetensors": tensors, "facts.json": to_json(facts)}
                files["metrics.jsonl"] = records.read_bytes() if records.exists() else b""
                store.put("networks", definition, files)
        accelerator.wait_for_everyone()
        found = store.find("networks", definition)
    if found is None:
        raise ConfigError(f"the trained {label} could not be read back from the store {store.root}")
    network.module.load_state_dict(load_file(found / "model.safetensors"))
    facts = json.loads((found / "facts.json").read_text())
    key = store.key(definition)
    seconds = float(facts["seconds"])
    origin = _origin(trained_now, key, facts, recipe)
    return Trained(network, origin, key, seconds, read_jsonl(found / "metrics.jsonl"), facts)


def every_rank(accelerator: Accelerator, here: bool) -> bool:
    """Whether all ranks say yes: another run may put an entry into the store while they look."""
    if accelerator.num_processes == 1:
        return here
    agreed = accelerator.reduce(torch.tensor(float(here), device=accelerator.device), "sum")
    return int(agreed) == accelerator.num_processes


def _origin(now: bool, key: str, facts: dict[str, Any], recipe: Recipe) -> str:
    how = f"{recipe.words}: {facts['steps']:,} steps with seed {recipe.seed}, {facts['seconds']:.1f} s"
    if now:
        return f"trained now by {how}; kept in the store as {key[:12]}"
    return f"taken from the store ({key[:12]}), where an earlier run kept it after training it by {how}"
