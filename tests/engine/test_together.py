"""Networks that learn beside each other, from a moving average of themselves, and from two views of an image."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import make_trainer, tiny_data, tiny_module, weights
from torch import Tensor

from kdkit import schedules
from kdkit.data import Tensors
from kdkit.engine.callbacks import Callback
from kdkit.engine.distiller import Distiller, Learner
from kdkit.engine.interrupt import Interrupted
from kdkit.engine.optim import parameter_groups
from kdkit.engine.ranks import global_counts
from kdkit.engine.rng import seed_everything
from kdkit.engine.schedulers import cosine
from kdkit.engine.settings import Settings
from kdkit.engine.trainer import Trainer
from kdkit.errors import ConfigError, InputError
from kdkit.losses import CELoss, DMLLoss, KDLoss
from kdkit.objective import Objective
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks import Classification
from kdkit.teachers import EMATeacher


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train(self, record: dict) -> None:
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class Seen(CELoss):
    """Cross-entropy that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[StepOutputs] = []

    def compute(self, out: StepOutputs) -> Tensor:
        self.steps.append(out)
        return super().compute(out)


def build(
    folder: Path | None = None,
    *,
    networks: int = 1,
    ema: dict[str, Any] | None = None,
    data: Tensors | None = None,
    settings: Settings | None = None,
    stop: int | None = None,
    objective: Callable[[], Objective] | None = None,
    dropout: float = 0.2,
) -> Trainer:
    """A trainer of several networks, or of one and its average."""
    AcceleratorState._reset_state()
    data = data or tiny_data()
    task = Classification(data.spec)
    seed_everything(0)
    loss = KDLoss(2.0) if ema is not None else DMLLoss()
    make = objective or (lambda: Objective({"ce": CELoss(), "other": loss}, {"ce": 1.0, "other": 0.5}))
    names = ["student", "teacher", *(f"teacher{number}" for number in range(2, networks))][:networks]
    learners = {name: Learner(task.wrap(tiny_module(dropout)), make()) for name in names}
    teacher = EMATeacher(learners["student"].network, task, **ema) if ema is not None else None
    return Trainer(
        Distiller(task, learners),
        task=task,
        data=data,
        settings=settings or Settings(epochs=3, batch_size=8, log_every=4, checkpoint_every=0),
        optimizer=lambda learner: torch.optim.Adam(parameter_groups(learner), lr=0.05),
        scheduler=lambda optimizer, steps: cosine(optimizer, steps, warmup=0.2),
        accelerator=Accelerator(cpu=True),
        teacher=teacher,
        folder=folder,
        identity="together",
        callbacks=[] if stop is None else [StopAt(stop)],
    )


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def views_of(data: Tensors) -> Tensors:
    images = data._source["train"]
    return Tensors(images.images, images.labels, val=(images.images[:9], images.labels[:9]), num_classes=3, views=2)


@pytest.mark.parametrize(
    "options",
    [
        {"networks": 3},
        {"networks": 3, "settings": Settings(epochs=3, batch_size=8, log_every=4, checkpoint_every=0, grad_clip=0.1)},
        {"ema": {"momentum": schedules.Cosine(0.9, 1.0)}},
        {"networks": 2, "data": views_of(tiny_data())},
    ],
    ids=["three networks", "clipped", "average", "two views"],
)
@pytest.mark.parametrize("stop", [4, 12])
def test_a_stopped_run_continues_to_the_same_bits(tmp_path: Path, options: dict[str, Any], stop: int) -> None:
    whole = build(tmp_path / "whole", **options)
    whole.fit()
    with pytest.raises(Interrupted):
        build(tmp_path / "parted", **options, stop=stop).fit()
    going_on = build(tmp_path / "parted", **options)
    torch.manual_seed(999)
    going_on.fit(resume=True)
    assert equal(weights(whole), weights(going_on))
    if whole.follower is not None:
        assert going_on.follower is not None and going_on.follower.updates == whole.follower.updates == 24
        assert equal(whole.follower.state(), going_on.follower.state())


# ---- several networks ----------------------------------------------------------------------------------------------


def test_each_network_sees_all_others_as_constants_and_the_first_as_its_teacher() -> None:
    seen: list[Seen] = []

    def make() -> Objective:
        seen.append(Seen())
        return Objective({"ce": seen[-1]}, {"ce": 1.0})

    trainer = build(networks=3, objective=make, settings=Settings(max_steps=1, batch_size=8, eval_every=0))
    trainer.fit()
    student, teacher, other = [part.steps[0] for part in seen]
    for own, others in ((student, (teacher, other)), (teacher, (student, other)), (other, (student, teacher))):
        assert own.student.logits.requires_grad
        assert own.teacher is own.peers[0]
        assert len(own.peers) == 2
        for peer, shown in zip(own.peers, others):
            assert torch.equal(peer.logits, shown.student.logits)
            assert not peer.logits.requires_grad


def test_one_backward_pass_gives_each_network_the_gradient_of_its_own_objective() -> None:
    trainer = build(networks=3, dropout=0.0)
    batch = next(iter(trainer.data.batches("train", 8, train=True)))
    distiller = trainer.distiller
    total, terms = distiller(batch, None, None, 0.0)
    assert set(terms) == {f"{prefix}{name}" for prefix in ("", "teacher/", "teacher2/") for name in ("ce", "other")}
    total.backward()
    got = {name: value.grad.clone() for name, value in distiller.named_parameters()}  # type: ignore[union-attr]
    for own, learner in distiller.items():
        distiller.zero_grad()
        said = {name: trainer.task.forward(other.network, batch) for name, other in distiller.items()}
        peers = tuple(ModelOutput(output.logits.detach()) for name, output in said.items() if name != own)
        value, _ = learner.objective(StepOutputs(said[own], peers[0], batch["label"], peers=peers))
        value.backward()
        for name, parameter in learner.named_parameters():
            assert torch.allclose(got[f"learners.{own}.{name}"], parameter.grad, atol=1e-7)  # type: ignore[arg-type]


def test_half_precision_that_scales_gradients_is_refused_for_several() -> None:
    trainer = build(networks=2)
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ConfigError, match=r"engine.precision=fp16 scales the gradients of one learner"):
        Trainer(
            trainer.distiller,
            task=trainer.task,
            data=trainer.data,
            settings=Settings(batch_size=8),
            optimizer=lambda learner: torch.optim.SGD(learner.parameters(), lr=0.1),
            scheduler=lambda optimizer, steps: cosine(optimizer, steps),
            accelerator=accelerator,
        )
    accelerator.scaler = None


# ---- a moving average of itself ------------------------------------------------------------------------------------


def test_the_average_follows_its_formula_and_gets_no_gradient() -> None:
    trainer = build(ema={"momentum": schedules.Linear(0.5, 0.9), "warmup": False})
    follower, network = trainer.follower, trainer.distiller.student.network
    assert follower is not None
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    follow, moments = follower.follow, []

    def watched(progress: float) -> None:
        momentum = 0.5 + 0.4 * progress
        moments.append(momentum)
        for name, value in network.state_dict().items():
            averaged = momentum * expected[name] + (1 - momentum) * value
            expected[name] = averaged if value.is_floating_point() else value.clone()
        follow(progress)

    follower.follow = watched  # type: ignore[method-assign]
    trainer.fit()
    assert len(moments) == 24 and moments[0] == 0.5 and moments[-1] > 0.87
    for name, value in follower.state().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert any(not torch.equal(value, follower.state()[name]) for name, value in network.state_dict().items())
    assert not follower.network.training
    assert all(not value.requires_grad and value.grad is None for value in follower.network.parameters())
    optimised = {id(value) for group in trainer.optimizers["student"].param_groups for value in group["params"]}
    assert not optimised & {id(value) for value in follower.network.parameters()}


def test_the_average_starts_as_the_student_and_lets_go_of_the_first_weights() -> None:
    task = Classification(tiny_data().spec)
    student = task.wrap(tiny_module())
    teacher = EMATeacher(student, task, momentum=0.999)
    assert equal(teacher.state(), dict(student.state_dict()))
    with torch.no_grad():
        student.module[1].weight += 1.0
    before = teacher.network.module[1].weight.clone()
    teacher.follow(0.0)
    assert torch.allclose(teacher.network.module[1].weight, before + 9 / 11, atol=1e-6)


def test_tied_weights_are_averaged_once() -> None:
    task = Classification(tiny_data().spec)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    module[2].weight = module[1].weight
    teacher = EMATeacher(task.wrap(module), task, momentum=0.5, warmup=False)
    before = module[1].weight.detach().clone()
    with torch.no_grad():
        module[1].weight += 1.0
    teacher.follow(0.0)
    assert torch.allclose(teacher.network.module[1].weight, before + 0.5)
    assert teacher.network.module[1].weight is teacher.network.module[2].weight


def test_a_momentum_out_of_range_is_refused() -> None:
    task = Classification(tiny_data().spec)
    student = task.wrap(tiny_module())
    for momentum in (1.1, -0.1, schedules.Linear(0.9, 1.2)):
        with pytest.raises(InputError, match=r"EMATeacher: momentum must lie in \[0, 1\], got"):
            EMATeacher(student, task, momentum=momentum)
    with pytest.raises(InputError, match="has no identity; use a teacher that stays"):
        _ = EMATeacher(student, task).identity


# ---- two views -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_see_both_views_and_each_counts(accumulation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    settings = Settings(max_steps=1, batch_size=8, accumulation=accumulation, eval_every=0)
    data = views_of(tiny_data())
    trainer = build(data=data, objective=lambda: Objective({"ce": seen}, {"ce": 1.0}), settings=settings)
    assert trainer.steps_per_epoch == 8 // accumulation
    totals: list[dict[str, Tensor]] = []

    def counted(*arguments: Any) -> dict[str, Tensor]:
        totals.append(global_counts(*arguments))
        return totals[-1]

    monkeypatch.setattr("kdkit.engine.trainer.global_counts", counted)
    trainer.fit()
    assert len(seen.steps) == accumulation
    for step in seen.steps:
        assert step.views == 2
        assert step.student.logits.shape == (16, 3)
        assert step.labels is not None
        assert torch.equal(step.labels[:8], step.labels[8:])
        assert torch.equal(step.extra["index"][:8], step.extra["index"][8:])
        assert not torch.equal(step.student.logits[:8], step.student.logits[8:])
    assert totals[0] == {"positions": 16 * accumulation, "labelled": 16 * accumulation}


def test_a_frozen_teacher_answers_both_views() -> None:
    trainer = make_trainer(data=views_of(tiny_data()), settings=Settings(max_steps=1, batch_size=8, eval_every=0))
    batch = next(iter(trainer.data.batches("train", 8, train=True)))
    assert trainer.teacher is not None
    assert trainer.teacher(batch).logits.shape == (16, 3)
    assert trainer.distiller.views == 2
    assert trainer.fit().steps == 1
