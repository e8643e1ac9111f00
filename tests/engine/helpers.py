"""A tiny classification problem and a trainer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from kdkit.data import Tensors
from kdkit.engine.distiller import Distiller, Learner
from kdkit.engine.optim import parameter_groups
from kdkit.engine.rng import seed_everything
from kdkit.engine.schedulers import cosine
from kdkit.engine.settings import Settings
from kdkit.engine.trainer import Trainer
from kdkit.losses import CELoss, KLLoss
from kdkit.objective import Objective
from kdkit.tasks import Classification
from kdkit.teachers import LiveTeacher


def tiny_data(count: int = 64, labels: torch.Tensor | None = None) -> Tensors:
    generator = torch.Generator().manual_seed(7)

    def draw(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        classes = torch.arange(number) % 3
        images = torch.rand(number, 1, 4, 4, generator=generator) * 0.5 + classes.view(-1, 1, 1, 1) * 0.2
        return images, classes

    images, targets = draw(count)
    held = draw(12)
    return Tensors(images, targets if labels is None else labels, val=held, test=held, num_classes=3)


def tiny_module(dropout: float = 0.2, batch_norm: bool = True) -> nn.Module:
    norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), norm, nn.Dropout(dropout), nn.Linear(8, 3))


def make_trainer(
    folder: Path | None = None,
    *,
    data: Any = None,
    settings: Settings | None = None,
    with_teacher: bool = True,
    seed: int = 0,
    identity: str = "tiny",
    callbacks: Any = (),
    losses: dict[str, Any] | None = None,
    dropout: float = 0.2,
    lr: float = 0.1,
    precision: str = "no",
    batch_norm: bool = True,
) -> Trainer:
    AcceleratorState._reset_state()
    data = data or tiny_data()
    task = Classification(data.spec)
    seed_everything(seed)
    student = task.wrap(tiny_module(dropout, batch_norm))
    teacher = LiveTeacher(task.wrap(tiny_module()), task) if with_teacher else None
    losses = losses or ({"ce": CELoss(), "kl": KLLoss()} if with_teacher else {"ce": CELoss()})
    objective = Objective(losses, {name: 1.0 if name == "ce" else 0.1 for name in losses})
    return Trainer(
        Distiller(task, {"student": Learner(student, objective)}),
        task=task,
        data=data,
        settings=settings or Settings(epochs=3, batch_size=8, log_every=4),
        optimizer=lambda learner: torch.optim.Adam(parameter_groups(learner), lr=lr),
        scheduler=lambda optimizer, steps: cosine(optimizer, steps, warmup=0.2),
        accelerator=Accelerator(cpu=True, mixed_precision=precision),
        teacher=teacher,
        seed=seed,
        folder=folder,
        identity=identity,
        callbacks=callbacks,
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.distiller.state_dict().items()}
