"""From settings to objects: accelerator, data, task, networks, objectives, projectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdkit._config.build import instantiate
from kdkit._run.tokenizers import settle_teacher, shared_entries
from kdkit.balancing import Balancer
from kdkit.data._base import Batch, DataModule, TextSpec
from kdkit.engine.distiller import Learner
from kdkit.engine.optim import parameter_groups
from kdkit.engine.rng import seed_everything
from kdkit.errors import ConfigError, KdkitError
from kdkit.features.taps import find_layer, find_norm
from kdkit.losses._base import Probe, Side
from kdkit.models._network import Network
from kdkit.objective import Objective
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks._base import Task

__all__ = [
    "Scene",
    "build_network",
    "build_objective",
    "build_projectors",
    "check_views",
    "fill_spec",
    "make_accelerator",
    "make_optimizer",
    "make_probe",
    "make_scheduler",
    "on_cpu",
    "prepare_losses",
    "quiet_forward",
    "set_scene",
    "step_outputs",
]


@dataclass(slots=True)
class Scene:
    """What every training of a run shares.

    Attributes:
        cfg: the settings, with ``spec`` filled in.
        data: the data set.
        task: the task.
        accelerator: device, precision and ranks.
    """

    cfg: DictConfig
    data: DataModule
    task: Task
    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        """Where everything happens."""
        return self.accelerator.device

    def probe_batch(self) -> Batch:
        """A few training samples without augmentation, for shapes and checks."""
        size = min(4, self.data.size("train"))
        return next(iter(self.data.batches("train", size, train=False, device=self.device)))


def on_cpu(engine: DictConfig) -> bool:
    """What accelerate has to be told: left to itself it takes ranks without a GPU for runs of their own."""
    ranks = int(os.environ.get("WORLD_SIZE") or 1)
    return engine.device == "cpu" or (ranks > 1 and engine.device == "auto" and not torch.cuda.is_available())


def make_accelerator(cfg: DictConfig, folder: Path | None = None) -> Accelerator:
    """The accelerator of the ``engine`` and ``loggers`` settings."""
    engine = cfg.engine
    if engine.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"engine.device must be auto, cpu or cuda, got {engine.device!r}")
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device=cuda, but torch sees no CUDA device; use engine.device=auto or cpu")
    if engine.threads:
        torch.set_num_threads(int(engine.threads))
    loggers = list(cfg.loggers or {}) if folder is not None else []
    if engine.precision == "fp16" and (engine.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("engine.precision=fp16 needs a CUDA device; use engine.precision=bf16 or no on the CPU")
    AcceleratorState._reset_state()  # a sweep may change precision or device from job to job in one process
    try:
        accelerator = Accelerator(
            mixed_precision=engine.precision,
            cpu=on_cpu(engine),
            log_with=loggers or None,
            project_config=ProjectConfiguration(str(folder), logging_dir=str(folder)) if folder is not None else None,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"engine.precision={engine.precision} or loggers={loggers} cannot be used: {error}"
        ) from error
    missing = [name for name in loggers if name not in {str(found) for found in accelerator.log_with}]
    if missing:
        raise ConfigError(f"loggers.{missing[0]} is not installed; run `pip install {missing[0]}`, or leave it out")
    return accelerator


def fill_spec(cfg: DictConfig, data: DataModule) -> None:
    """Write what the data turned out to be into ``cfg.spec``; a value that was set by hand must agree."""
    for key in cfg.spec:
        value = getattr(data.spec, str(key), None)
        if value is None:
            continue
        if cfg.spec[key] is not None and cfg.spec[key] != value:
            raise ConfigError(f"spec.{key}={cfg.spec[key]}, but data {data.name!r} has {value}; leave spec.{key} out")
        cfg.spec[key] = value


def set_scene(cfg: DictConfig, accelerator: Accelerator) -> Scene:
    """Load the data and fix the task."""
    with accelerator.local_main_process_first():
        data = instantiate(cfg.data, where="data")
    fill_spec(cfg, data)
    settle_teacher(cfg, data)
    return Scene(cfg, data, instantiate(cfg.task, data.spec, where="task"), accelerator)


def build_network(block: DictConfig, scene: Scene, *, seed: int, where: str, name: str) -> Network:
    """A network of a ``student``- or ``teacher``-like block, with weights drawn from ``seed`` or loaded.

    ``weights``: a file or folder to load; ``null``, ``"random"`` and ``"pretrained"`` leave what the model's
    constructor made.
    """
    from kdkit.models import load_weights

    seed_everything(seed, deterministic=bool(scene.cfg.engine.deterministic))
    module = instantiate(block.model, where=f"{where}.model")
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where}.model must build a torch.nn.Module, got {type(module).__name__}")
    if block.weights not in (None, "random", "pretrained"):
        load_weights(module, block.weights)
    network = scene.task.wrap(
        module,
        normalization=_plain(block.get("normalization")),
        input_size=block.get("input_size"),
        name=name,
    )
    return network.to(scene.device)


@torch.no_grad()
def quiet_forward(network: Network, scene: Scene, batch: Batch, where: str) -> ModelOutput:
    """Outputs in evaluation mode, without gradient and without a trace in the network.

    Raises:
        ConfigError: if the network cannot take this batch.
    """
    was_training = network.training
    network.eval()
    try:
        return scene.task.forward(network, batch)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if isinstance(error, KdkitError | torch.OutOfMemoryError):
            raise
        raise ConfigError(
            f"{where}.model cannot take a batch of data {scene.data.name!r} ({' '.join(str(error).split())}); "
            "give it the channels, the size and the vocabulary of the data, ${spec.in_chans} and so on"
        ) from error
    finally:
        network.train(was_training)


def build_objective(
    losses: Mapping[str, Any], weights: Mapping[str, Any], balance: Any = None, *, where: str = "loss"
) -> Objective:
    """The objective of a ``loss``, a ``weights`` and a ``balance`` block."""
    built = {str(name): instantiate(block, where=f"{where}.{name}") for name, block in losses.items()}
    values = {
        str(name): instantiate(value, where=f"weights.{name}") if isinstance(value, Mapping | DictConfig) else value
        for name, value in weights.items()
    }
    balancer = instantiate(balance, where="balance")
    if balancer is not None and not isinstance(balancer, Balancer):
        raise ConfigError(
            f"balance must be a balancer of kdkit.balancing, got {type(balancer).__name__}; choose balance=uncertainty"
        )
    return Objective(built, values, balancer)


def build_projectors(
    cfg: DictConfig, objective: Objective, student: ModelOutput, teacher: ModelOutput
) -> dict[str, nn.Module]:
    """One projector per feature pair that some loss wants in one shape, sized by the outputs of one batch."""
    from kdkit.features import build_projector

    projectors = {}
    for pair in sorted(objective.pairs):
        setting = cfg.features[pair].get("projector", "auto")
        if pair not in objective.matched_pairs:
            if isinstance(setting, DictConfig):
                raise ConfigError(
                    f"features.{pair}.projector is set, but the losses that read this pair take features of any shape "
                    "as the layers give them; leave the projector out"
                )
            continue
        shapes = student.features[pair].shape, teacher.features[pair].shape
        if setting is None or shapes[0] == shapes[1]:
            setting = "none"
        elif isinstance(setting, DictConfig):
            setting = partial(_late, setting, pair)
        projectors[pair] = build_projector(setting, *shapes)
    return projectors


def _late(setting: DictConfig, pair: str, *shapes: Any) -> nn.Module:
    block = {key: value for key, value in _plain(setting).items() if key != "_partial_"}
    return instantiate(block, *shapes, where=f"features.{pair}.projector")


def make_probe(
    scene: Scene,
    outputs: StepOutputs,
    learner: Learner,
    networks: Mapping[Side, tuple[Network, Mapping[str, str]]],
    class_means: Callable[[str], Tensor] | None,
) -> Probe:
    """What the losses of a learner may look at before training.

    Args:
        scene: of the run.
        outputs: one batch, not projected.
        learner: projects its own features.
        networks: "student" and, where it is one network, "teacher", each with its tapped layers by pair.
        class_means: of the teacher, if it can give them.
    """
    projected = replace(outputs, student=learner.project(outputs.student))
    spec = scene.data.spec
    heads: dict[Side, nn.Module] = {}
    layers: dict[Side, dict[str, nn.Module]] = {}
    norms: dict[Side, dict[str, nn.Module]] = {}
    for side, (network, tapped) in networks.items():
        found = {pair: find_norm(network.module, layer) for pair, layer in tapped.items()}
        norms[side] = {pair: norm for pair, norm in found.items() if norm is not None}
        layers[side] = {pair: find_layer(network.module, layer)[0] for pair, layer in tapped.items()}
        if any(isinstance(module, nn.Linear) for module in network.module.modules()):
            heads[side] = network.head
    return Probe(
        projected,
        scene.data.size("train"),
        spec.vocab_size if isinstance(spec, TextSpec) else spec.num_classes,
        class_means,
        None if isinstance(spec, TextSpec) else partial(scene.data.labels, "train"),
        heads,
        layers,
        norms,
        () if isinstance(spec, TextSpec) else spec.class_names,
        shared_entries(scene.data),
    )


def prepare_losses(objective: Objective, scene: Scene, probe: Probe) -> None:
    """Let each loss size and fill itself from one batch.

    Raises:
        ConfigError: for a loss that needs a linear classifier of a network without one.
    """
    for name, loss in objective:
        for side in loss.needs_heads:
            if not isinstance(probe.heads.get(side), nn.Linear):
                got = type(probe.heads[side]).__name__ if side in probe.heads else "none"
                raise ConfigError(
                    f"loss {name!r} reads the {side}'s classifier, which must be a torch.nn.Linear of one network, got "
                    f"{got}; choose another {side}, or leave this loss out"
                )
        loss.prepare(probe)
    objective.to(scene.device)


def check_views(objective: Objective, data: DataModule) -> None:
    """Refuse losses that compare more views of each image than the training batches hold."""
    for name, loss in objective:
        if loss.needs_views > data.views:
            raise ConfigError(
                f"loss {name!r} compares {loss.needs_views} views of each image and data {data.name!r} gives "
                f"{data.views}; set data.views={loss.needs_views}, or leave this loss out"
            )


def make_optimizer(block: DictConfig, learner: Learner) -> Optimizer:
    """The optimizer of an ``optim`` block for one learner."""
    return instantiate(block, parameter_groups(learner), where="optim")


def make_scheduler(block: DictConfig, cfg: DictConfig, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The learning-rate schedule of a ``scheduler`` block.

    Targets that name ``total_steps`` get it; others (timm's ``t_initial``) say ``${spec.steps}``.
    """
    cfg.spec.steps = total_steps
    try:
        return instantiate(block, optimizer, offer={"total_steps": total_steps}, where="scheduler")
    finally:
        cfg.spec.steps = None


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def step_outputs(scene: Scene, batch: Batch, student: ModelOutput, teacher: ModelOutput | None) -> StepOutputs:
    """What a loss would see of this batch."""
    labels, mask = scene.task.targets(batch)
    alignment = scene.task.alignment(batch)
    return StepOutputs(student, teacher, labels, mask, 0.0, scene.task.extra(batch), alignment=alignment)
