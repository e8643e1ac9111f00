"""The loop: what it optimises, how it stops, and that a stopped run continues to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import make_trainer, tiny_data, weights

from kdkit.engine.callbacks import Callback
from kdkit.engine.interrupt import Interrupted
from kdkit.engine.settings import Settings
from kdkit.errors import CheckpointError, ConfigError, NonFiniteError
from kdkit.losses import CELoss, KLLoss
from kdkit.outputs import StepOutputs


class StopAt(Callback):
    """Presses Ctrl-C when a log record of this step arrives."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train(self, record: dict) -> None:
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class Listen(Callback):
    def __init__(self) -> None:
        self.train: list[dict] = []
        self.eval: list[dict] = []

    def on_train(self, record: dict) -> None:
        self.train.append(record)

    def on_eval(self, record: dict) -> None:
        self.eval.append(record)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_learns_and_reports() -> None:
    listen = Listen()
    trainer = make_trainer(callbacks=[listen], settings=Settings(epochs=20, batch_size=8, log_every=8))
    before = weights(trainer)
    result = trainer.fit()
    assert result.steps == 160
    assert not equal(before, weights(trainer))
    assert listen.train[-1]["terms"]["ce"] < listen.train[0]["terms"]["ce"]
    assert set(listen.train[0]["terms"]) == {"ce", "kl"}
    assert 0.0 < listen.train[0]["teacher_share"] < 1.0
    assert result.validation["accuracy"] > 0.5
    assert [record["epoch"] for record in listen.eval] == list(range(1, 21))


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not() -> None:
    runs = []
    for seed in (0, 0, 1):
        trainer = make_trainer(seed=seed)
        trainer.fit()
        runs.append(weights(trainer))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize("stop", [4, 8, 20])
def test_a_stopped_run_continues_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    settings = Settings(epochs=3, batch_size=8, log_every=4, ema=0.9, checkpoint_every=0, select="best", grad_clip=1.0)
    whole = make_trainer(tmp_path / "whole", settings=settings)
    whole_result = whole.fit()
    parted = make_trainer(tmp_path / "parted", settings=settings, callbacks=[StopAt(stop)])
    with pytest.raises(Interrupted, match=f"stopped at step {stop} of 24"):
        parted.fit()
    torch.manual_seed(999)  # whatever happens in between
    going_on = make_trainer(tmp_path / "parted", settings=settings)
    torch.manual_seed(999)
    result = going_on.fit(resume=True)
    assert result.steps == whole_result.steps == 24
    assert result.selected_step == whole_result.selected_step
    assert equal(weights(whole), weights(going_on))
    assert whole.average is not None and going_on.average is not None
    assert equal(whole.average.state(), going_on.average.state())


def test_a_killed_run_falls_back_to_the_checkpoint_before_and_ends_the_same(tmp_path: Path) -> None:
    settings = Settings(epochs=3, batch_size=8, checkpoint_every=1, keep=2)
    whole = make_trainer(tmp_path / "whole", settings=settings)
    whole.fit()
    parted = make_trainer(tmp_path / "parted", settings=settings, callbacks=[StopAt(20)])
    parted.settings.log_every = 20
    with pytest.raises(Interrupted):
        parted.fit()
    newest = sorted((tmp_path / "parted").glob("step-*"))[-1]
    content = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    going_on = make_trainer(tmp_path / "parted", settings=settings)
    with pytest.warns(UserWarning, match="damaged.*trying the one before"):
        going_on.fit(resume=True)
    assert equal(weights(whole), weights(going_on))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    with pytest.raises(CheckpointError, match="made by a run with other settings or other data"):
        make_trainer(tmp_path, identity="other").fit(resume=True)


def test_the_teacher_is_neither_optimised_nor_saved_nor_put_into_training_mode(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert trainer.teacher is not None
    network = trainer.teacher.network  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimised = {id(p) for group in trainer.optimizers["student"].param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in network.parameters()}
    trainer.fit()
    assert not network.training
    assert equal(before, dict(network.state_dict()))
    assert all(p.grad is None for p in network.parameters())
    assert not any("teacher" in name for name in trainer.distiller.state_dict())


class BreaksAt(KLLoss):
    """NaN from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def compute(self, out: StepOutputs) -> torch.Tensor:
        self.calls += 1
        return super().compute(out) * (float("nan") if self.calls > 10 else 1.0)


def test_nan_stops_names_the_term_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, losses={"ce": CELoss(), "bad": BreaksAt()})
    message = (
        r"student: loss term bad became NaN or infinite at step 10 \(epoch 1, batch 2, first samples \[.*step-00000008"
    )
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit()
    assert all(torch.isfinite(value).all() for value in trainer.store.latest().tensors.values())  # type: ignore[union-attr]


def test_weights_that_the_last_update_spoilt_are_neither_saved_nor_returned(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, settings=Settings(max_steps=1, batch_size=8), lr=float("inf"))
    with pytest.raises(
        NonFiniteError, match=r"weights of the student became NaN or infinite by step 1; lower optim\.lr"
    ):
        trainer.fit()
    assert not list(tmp_path.glob("step-*"))


def test_accumulation_gives_the_gradient_of_one_large_batch() -> None:
    """Without batch statistics and dropout, 2 x 8 samples are 16 samples; labels are missing unevenly on purpose."""
    labels = torch.arange(64) % 3
    labels[torch.arange(64) % 5 < 3] = -100
    data = tiny_data(labels=labels)
    results = []
    for batch, accumulation in ((16, 1), (8, 2), (4, 4)):
        settings = Settings(max_steps=4, batch_size=batch, accumulation=accumulation, eval_every=0)
        trainer = make_trainer(data=data, settings=settings, dropout=0.0, batch_norm=False)
        trainer.fit()
        results.append(weights(trainer))
    for other in results[1:]:
        for name, value in other.items():
            torch.testing.assert_close(value, results[0][name], rtol=1e-4, atol=1e-5)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"engine.batch_size must not exceed the training split, got 128 for 64 samples"
    ):
        make_trainer(settings=Settings(batch_size=128))
    with pytest.raises(ConfigError, match="holds no whole optimizer step"):
        make_trainer(settings=Settings(batch_size=32, accumulation=4))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, "engine.batch_size must be a whole number of at least 1, got 0"),
        ("max_steps", 0, "engine.max_steps must be a whole number of at least 1, got 0"),
        ("ema", 1.0, r"engine.ema must lie in \(0, 1\) or be null, got 1.0"),
        ("grad_clip", -1.0, "engine.grad_clip must be positive or null, got -1.0"),
        ("precision", "fp8", "engine.precision must be one of no, bf16, fp16, got 'fp8'"),
    ],
)
def test_settings_out_of_range_are_refused(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**{option: value})


def test_bf16_on_the_cpu_stays_close_to_float32() -> None:
    losses = []
    for precision in ("no", "bf16"):
        listen = Listen()
        settings = Settings(epochs=3, batch_size=8, log_every=24)
        make_trainer(callbacks=[listen], settings=settings, precision=precision).fit()
        losses.append(listen.train[-1]["loss"])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
