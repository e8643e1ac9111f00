"""The knobs of the loop, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from kdkit.data._base import DataModule
from kdkit.errors import ConfigError

__all__ = ["Settings"]


@dataclasses.dataclass(slots=True)
class Settings:
    """How long, how large, how precise, how often. The keys of the ``engine`` settings of the same names.

    Attributes:
        epochs: passes over the training split; ignored when ``max_steps`` is given.
        max_steps: optimizer steps, or ``None``.
        batch_size: samples per micro-batch and process.
        eval_batch_size: samples per batch in evaluation; ``None`` takes four times ``batch_size``.
        accumulation: micro-batches per optimizer step and process.
        precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"`` autocast.
        grad_clip: largest norm of a learner's gradient, or ``None``.
        ema: decay of the moving average of the student's weights in (0, 1), or ``None``.
        compile: compile the networks that learn with ``torch.compile``.
        compile_teacher: compile the frozen teacher as well.
        channels_last: keep images and convolution weights in that memory format.
        eval_every: epochs between evaluations on the validation split; 0 evaluates at the end only.
        checkpoint_every: epochs between checkpoints; 0 writes one at the end and when interrupted only.
        keep: checkpoints to keep.
        log_every: optimizer steps between log records.
        select: ``"last"`` weights, or those of the ``"best"`` validation result.
    """

    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 64
    eval_batch_size: int | None = None
    accumulation: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    grad_clip: float | None = None
    ema: float | None = None
    compile: bool = False
    compile_teacher: bool = False
    channels_last: bool = False
    eval_every: int = 1
    checkpoint_every: int = 1
    keep: int = 2
    log_every: int = 20
    select: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "keep", "log_every"):
            self._positive(name, getattr(self, name))
        self._positive("epochs" if self.max_steps is None else "max_steps", self.max_steps or self.epochs)
        if self.max_steps is not None:
            self._positive("max_steps", self.max_steps)
        if self.eval_batch_size is not None:
            self._positive("eval_batch_size", self.eval_batch_size)
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise ConfigError(f"engine.ema must lie in (0, 1) or be null, got {self.ema}")
        if self.grad_clip is not None and not self.grad_clip > 0.0:
            raise ConfigError(f"engine.grad_clip must be positive or null, got {self.grad_clip}")
        for name, choices in (("precision", ("no", "bf16", "fp16")), ("select", ("last", "best"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"engine.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @staticmethod
    def _positive(name: str, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"engine.{name} must be a whole number of at least 1, got {value!r}")

    @classmethod
    def from_config(cls, engine: Mapping[str, Any]) -> Settings:
        """Take the keys of these names out of a larger block of settings."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in engine.items() if key in names})

    @property
    def evaluation_batch(self) -> int:
        """Batch size for evaluation."""
        return self.eval_batch_size or 4 * self.batch_size

    def steps_per_epoch(self, data: DataModule, ranks: int) -> int:
        """Optimizer steps in a pass over the training split.

        Raises:
            ConfigError: if it is too small for a single one.
        """
        size = data.size("train")
        if size < self.batch_size:
            raise ConfigError(
                f"engine.batch_size must not exceed the training split, got {self.batch_size} for {size} samples; "
                f"set engine.batch_size={size} or less"
            )
        steps = data.num_batches("train", self.batch_size, train=True) // (ranks * self.accumulation)
        if steps < 1:
            raise ConfigError(
                f"an epoch of {size} samples holds no whole optimizer step of engine.batch_size={self.batch_size} "
                f"x engine.accumulation={self.accumulation} x {ranks} processes; lower one of them"
            )
        return steps

    def identity(self) -> dict[str, Any]:
        """The settings that change the weights that come out."""
        inert = {"eval_batch_size", "eval_every", "checkpoint_every", "keep", "log_every", "compile_teacher"}
        values = {key: value for key, value in dataclasses.asdict(self).items() if key not in inert}
        if self.max_steps is not None:
            del values["epochs"]
        if self.select == "best":
            values["eval_every"] = self.eval_every  # decides which weights there are to choose from
        return values
