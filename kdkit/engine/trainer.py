"""The one loop: any modality, any teacher, any number of learners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdkit.data._base import Batch, DataModule
from kdkit.engine.averaging import WeightAverage
from kdkit.engine.callbacks import Callback
from kdkit.engine.checkpoint import CheckpointStore
from kdkit.engine.distiller import Distiller, Learner
from kdkit.engine.evaluate import evaluate
from kdkit.engine.interrupt import Interrupted, InterruptGuard
from kdkit.engine.meter import Meter
from kdkit.engine.ranks import buffers_to_spread, fetched_everywhere, global_counts, leave_out, on_any_rank, spread
from kdkit.engine.settings import Settings
from kdkit.engine.state import collect_state, restore_state
from kdkit.errors import ConfigError, NonFiniteError
from kdkit.outputs import ModelOutput
from kdkit.tasks._base import Task
from kdkit.tasks._strategy import Strategy
from kdkit.teachers._base import Teacher
from kdkit.teachers.ema import EMATeacher

__all__ = ["FitResult", "Trainer"]

OptimizerFactory = Callable[[Learner], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


@dataclass(slots=True)
class FitResult:
    """What a training came to.

    Attributes:
        steps: optimizer steps taken in all.
        seconds: wall-clock time spent training, earlier parts of a resumed run included.
        selected_step: the step whose weights the student now carries.
        validation: last validation metrics, empty without a validation split.
        teacher_share: share of that time spent in the frozen teacher, ``None`` without one.
        paused: seconds of this part that did not count as training, for evaluations and checkpoints.
    """

    steps: int
    seconds: float
    selected_step: int
    validation: dict[str, float] = field(default_factory=dict)
    teacher_share: float | None = None
    paused: float = 0.0


class Trainer:
    """Trains the learners of a :class:`~kdkit.engine.distiller.Distiller`.

    Args:
        distiller: what learns; moved to the accelerator's device.
        task: the task.
        data: the data set.
        settings: the knobs.
        optimizer: makes one optimizer per learner.
        scheduler: makes its learning-rate schedule, given the optimizer and the number of steps. Schedulers with
            ``step_update`` (timm) are driven per step through that.
        accelerator: device, precision and ranks.
        teacher: a frozen teacher, or ``None``.
        strategy: what changes training batches first, or ``None``.
        seed: decides batches and augmentation; random numbers of the networks come from the global generators.
        sample_weights: one weight per training sample by index, or ``None``.
        folder: where checkpoints go; ``None`` writes none.
        identity: what this run is; a checkpoint of another identity is refused.
        callbacks: listeners, called on the main process.
        label: what progress calls this training.
    """

    def __init__(
        self,
        distiller: Distiller,
        *,
        task: Task,
        data: DataModule,
        settings: Settings,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory,
        accelerator: Accelerator,
        teacher: Teacher | None = None,
        strategy: Strategy | None = None,
        seed: int = 0,
        sample_weights: Tensor | None = None,
        folder: Path | None = None,
        identity: str = "",
        callbacks: Sequence[Callback] = (),
        label: str = "student",
    ) -> None:
        self.accelerator, self.task, self.data, self.settings = accelerator, task, data, settings
        self.teacher, self.strategy, self.seed, self.identity, self.label = teacher, strategy, seed, identity, label
        self.callbacks = list(callbacks) if accelerator.is_main_process else []
        self.store = CheckpointStore(folder, keep=settings.keep) if folder is not None else None
        self.steps_per_epoch = settings.steps_per_epoch(data, accelerator.num_processes)
        self.total_steps = settings.max_steps or settings.epochs * self.steps_per_epoch
        self.sample_weights = None if sample_weights is None else sample_weights.to(accelerator.device)
        self.step = 0
        self.saved: int | None = None
        self.distiller = distiller.to(accelerator.device)
        self.distiller.views = data.views
        if settings.channels_last:
            self.distiller.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.compile:
            for _, learner in distiller.items():
                learner.network.compile()
        self.optimizers = {name: optimizer(learner) for name, learner in distiller.items()}
        self.schedulers = {name: scheduler(opt, self.total_steps) for name, opt in self.optimizers.items()}
        if accelerator.scaler is not None and len(self.optimizers) > 1:
            raise ConfigError(
                "engine.precision=fp16 scales the gradients of one learner, and here the teacher learns too; use "
                "engine.precision=bf16 or no"
            )
        leave_out(self.distiller)
        prepared = accelerator.prepare(self.distiller, *self.optimizers.values())
        self.wrapped = prepared[0]
        self.optimizers = dict(zip(self.optimizers, prepared[1:], strict=True))
        self.average = WeightAverage(self.distiller.student.network, settings.ema) if settings.ema else None
        self.follower = teacher if isinstance(teacher, EMATeacher) else None
        self.best: dict[str, Any] = {"metrics": None, "step": 0, "tensors": {}}
        self.meter = Meter(accelerator, has_teacher=teacher is not None)

    def fit(self, *, resume: bool = False) -> FitResult:
        """Train to the end, or until interrupted.

        Args:
            resume: continue from the newest undamaged checkpoint in ``folder``, if there is one.

        Raises:
            NonFiniteError: a loss term became NaN or infinite; names the term, the step and the batch.
            Interrupted, ServerError: Ctrl-C or SIGTERM, or a teacher behind a server failed; a checkpoint was written.
            CheckpointError: no readable checkpoint, or one of another run.
        """
        seconds = 0.0
        if resume and self.store is not None:
            seconds = restore_state(self, self.store.latest())
        self._tell("on_start", self.label, self.step, self.total_steps)
        self.distiller.train()
        self.meter.start(seconds)
        try:
            with InterruptGuard() as guard:
                for group in self._groups():
                    self._train_step(group)
                    self._after_step()
                    if self._asked_to_stop(guard):
                        self._stop_early()
                validation = self._finish()
                if self._asked_to_stop(guard, now=True):
                    self._stop_early()
        finally:
            self._tell("on_end")
        chosen = self._select()
        return FitResult(self.step, self.meter.seconds, chosen, validation, self.meter.teacher_share, self.meter.pause)

    def _groups(self) -> Iterator[list[Batch]]:
        """The micro-batches of each remaining optimizer step."""
        settings = self.settings
        while self.step < self.total_steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            batches = self.data.batches(
                "train",
                settings.batch_size,
                train=True,
                seed=self.seed,
                epoch=epoch,
                start=done * settings.accumulation,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                device=self.accelerator.device,
            )
            remaining = min(self.steps_per_epoch - done, self.total_steps - self.step)
            for _ in range(remaining):
                yield [self._weighed(batch) for batch in islice(batches, settings.accumulation)]

    def _weighed(self, batch: Batch) -> Batch:
        if self.sample_weights is None:
            return batch
        return {**batch, "weight": self.sample_weights[batch["index"]]}

    def _train_step(self, group: list[Batch]) -> None:
        group = self._rewritten(group)
        totals = global_counts(self.task, group, self.accelerator)
        progress = self.step / self.total_steps
        fetched = self._fetched(group)
        for number, batch in enumerate(group):
            batch = self._formatted(batch)
            guidance = self._guidance(batch) if fetched is None else fetched[number]
            with nullcontext() if number == len(group) - 1 else self.accelerator.no_sync(self.wrapped):
                loss, terms = self.wrapped(batch, guidance, totals, progress)
                # DDP averages over ranks what has already been divided by the global count
                self.accelerator.backward(loss * self.accelerator.num_processes)
            self.meter.add(loss, terms, self.task.throughput(batch))
        self._guard_finite(group)
        self._optimize()
        self.step += 1
        self.meter.count_step()

    def _guidance(self, batch: Batch) -> ModelOutput | None:
        if self.teacher is None:
            return None
        with self.accelerator.autocast(), self.meter.teacher():
            return self.teacher(batch)

    def _fetched(self, group: list[Batch]) -> list[ModelOutput | None] | None:
        """A step's answers of a teacher that may fail, before any is computed with; a failure leaves a checkpoint."""
        if not getattr(self.teacher, "may_fail", False):
            return None
        answers, failure = fetched_everywhere(self.accelerator, lambda: [self._guidance(batch) for batch in group])
        if failure is not None:
            if self.saved != self.step:
                self.save()
            raise failure
        return answers

    def _rewritten(self, group: list[Batch]) -> list[Batch]:
        """What the strategy makes of the micro-batches of a step."""
        if self.strategy is None:
            return group
        networks = self.distiller.student.network, getattr(self.teacher, "network", None)
        rank, progress = self.accelerator.process_index, self.step / self.total_steps
        with self.accelerator.autocast():
            return [
                self.strategy(batch, *networks, key=(self.seed, self.step, number), rank=rank, progress=progress)
                for number, batch in enumerate(group)
            ]

    def _formatted(self, batch: Batch) -> Batch:
        if not self.settings.channels_last:
            return batch
        return {
            key: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for key, value in batch.items()
        }

    def _optimize(self) -> None:
        for name, optimizer in self.optimizers.items():
            if self.settings.grad_clip is not None:
                learner = self.distiller.learners[name]
                self.accelerator.clip_grad_norm_(learner.parameters(), self.settings.grad_clip)
            optimizer.step()
            scheduler = self.schedulers[name]
            if hasattr(scheduler, "step_update"):
                scheduler.step_update(self.step + 1)
            elif not getattr(optimizer, "step_was_skipped", False):
                scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        if self.follower is not None:
            self.follower.follow(self.step / self.total_steps)
            if self.accelerator.num_processes > 1:
                spread(self.follower.network.buffers())  # they follow the statistics of the own batches

    def _guard_finite(self, group: list[Batch], *, force: bool = False) -> None:
        """Off the CPU the check runs with the log records only, so that no step waits for the device."""
        immediate = self.accelerator.device.type == "cpu"
        if not (immediate or force or (self.step + 1) % self.settings.log_every == 0):
            return
        bad = self.meter.non_finite()
        if not bad:
            return
        epoch, position = divmod(self.step, self.steps_per_epoch)
        where = f"epoch {epoch}, batch {position}"
        if immediate and group and "index" in group[0]:
            where += f", first samples {group[0]['index'][:4].tolist()}"
        raise NonFiniteError(
            f"{self.label}: loss term {' and '.join(bad)} became NaN or infinite at step {self.step} ({where})"
            f"{self._last_good()}; lower optim.lr, set engine.grad_clip=1.0, or check the data"
        )

    def _guard_weights(self) -> None:
        """The last update may have spoilt weights that no loss has seen yet."""
        for name, learner in self.distiller.items():
            finite = [torch.isfinite(value).all() for value in learner.parameters()]
            if not bool(torch.stack(finite).all()):
                raise NonFiniteError(
                    f"{self.label}: weights of the {name} became NaN or infinite by step {self.step}"
                    f"{self._last_good()}; lower optim.lr, or set engine.grad_clip=1.0"
                )

    def _last_good(self) -> str:
        kept = self.store.list() if self.store is not None else []
        return f"; the last good checkpoint is {kept[-1]}" if kept else ""

    def _after_step(self) -> None:
        settings = self.settings
        finished = self.step >= self.total_steps
        if finished:
            self._guard_finite([], force=True)
        if self.step % settings.log_every == 0 or finished:
            self._log()
        if self.step % self.steps_per_epoch == 0 and not finished:
            epoch = self.step // self.steps_per_epoch
            if settings.eval_every and epoch % settings.eval_every == 0:
                self._evaluate()
            if settings.checkpoint_every and epoch % settings.checkpoint_every == 0:
                self.save()

    def _log(self) -> None:
        record: dict[str, Any] = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        record |= self.meter.record() | dict(self.strategy.record() if self.strategy is not None else {})
        record["lr"] = self.optimizers["student"].param_groups[0]["lr"]
        record["eta"] = self.meter.seconds / max(self.step, 1) * (self.total_steps - self.step)
        balance = self.distiller.student.objective.balance
        if balance is not None:
            record["factors"] = {name: float(factor.detach()) for name, factor in balance.factors().items()}
        self._tell("on_train", record)

    def _agree(self) -> None:
        """Each rank keeps running statistics of its own batches; those of the main process count, as in checkpoints."""
        if self.accelerator.num_processes == 1:
            return
        buffers = buffers_to_spread(self.distiller)
        if self.average is not None:
            names = [name for name, _ in self.distiller.student.network.named_buffers()]
            buffers += [self.average.shadow[name] for name in names if name in self.average.shadow]
        spread(buffers)

    def _evaluate(self) -> dict[str, float]:
        self._agree()
        if self.data.size("val") == 0:
            return {}
        network = self.distiller.student.network
        with self.meter.paused(), self.average.swapped() if self.average else nullcontext():
            result = evaluate(
                network,
                task=self.task,
                data=self.data,
                split="val",
                batch_size=self.settings.evaluation_batch,
                accelerator=self.accelerator,
                teacher=self.teacher if self.teacher is not None and self.teacher.live else None,
            )
            if self.settings.select == "best" and self.task.better(result.metrics, self.best["metrics"]):
                tensors = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
                self.best = {"metrics": result.metrics, "step": self.step, "tensors": tensors}
        record = {
            "split": "val",
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "time": self.meter.seconds,
            "metrics": result.metrics,
        }
        self._tell("on_eval", record)
        return result.metrics

    def save(self) -> None:
        """Write a checkpoint of this instant; never one with weights gone NaN."""
        self._guard_finite([], force=True)
        self._guard_weights()
        if self.store is None:
            return
        with self.meter.paused():
            checkpoint = collect_state(self)
            if self.accelerator.is_main_process:
                self.store.save(checkpoint)
            self.accelerator.wait_for_everyone()
        self.saved = self.step

    def _asked_to_stop(self, guard: InterruptGuard, *, now: bool = False) -> bool:
        waits = self.accelerator.num_processes > 1 and self.step % 10 and not now
        return not waits and on_any_rank(self.accelerator, guard.requested)

    def _stop_early(self) -> None:
        if self.saved != self.step:
            self.save()
        raise Interrupted(f"{self.label}: stopped at step {self.step} of {self.total_steps}")

    def _finish(self) -> dict[str, float]:
        """Validate and save once at the very end; a finished run that is resumed only evaluates again."""
        validation = self._evaluate()
        self.save()
        return validation

    def _select(self) -> int:
        """Put the weights to keep into the student."""
        network = self.distiller.student.network
        if self.settings.select == "best" and self.best["tensors"]:
            network.load_state_dict(self.best["tensors"])
            return int(self.best["step"])
        if self.average is not None:
            network.load_state_dict(self.average.shadow)
        return self.step

    def _tell(self, what: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(*arguments)
