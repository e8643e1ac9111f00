"""What the loop asks of a task: the only place that knows the modality."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data._base import Batch, Spec
from kdkit.models._network import Network
from kdkit.outputs import IGNORE_INDEX, Alignment, ModelOutput, StepOutputs

__all__ = ["Metrics", "Task"]


class Metrics(ABC):
    """Collects one evaluation. State is plain CPU data so that ranks can be merged."""

    @abstractmethod
    def update(self, out: StepOutputs, batch: Batch) -> None:
        """Add one batch."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """This rank's state, picklable."""

    @abstractmethod
    def merge(self, states: list[dict[str, Any]]) -> None:
        """Replace the own state by that of all ranks together."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Metric name -> value. Shares are in [0, 1], not per cent."""

    def extras(self) -> dict[str, Any]:
        """JSON-able data for pictures, e.g. the bins of a reliability diagram."""
        return {}


class Task(ABC):
    """Turns batches into network inputs, targets and metrics."""

    name: str
    primary: str
    """The metric that says which network is better."""
    higher_is_better: bool
    unit: str
    """What throughput is counted in: ``"images"``, ``"texts"`` or ``"tokens"``."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @abstractmethod
    def wrap(
        self, module: nn.Module, *, normalization: Any = None, input_size: int | None = None, name: str = "network"
    ) -> Network:
        """Put a plain module into the network wrapper of this modality.

        ``normalization`` and ``input_size`` are settings of images; a task without images refuses them.
        """

    @abstractmethod
    def inputs(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """What the network is called with for this batch."""

    def forward(self, network: Network, batch: Batch) -> ModelOutput:
        """Run a network on a batch; logits come back aligned with :meth:`targets`."""
        output: ModelOutput = network(self.inputs(network, batch))
        return output

    @abstractmethod
    def targets(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """``(labels, mask)`` as :class:`~kdkit.outputs.StepOutputs` wants them."""

    def extra(self, batch: Batch) -> dict[str, Tensor]:
        """What few losses need besides, see :class:`~kdkit.outputs.StepOutputs`."""
        return {"index": batch["index"]} if "index" in batch else {}

    def alignment(self, batch: Batch) -> Alignment | None:
        """Where student and teacher read one text in tokens of their own: which tokens belong together."""
        return None

    @property
    def one_vocabulary(self) -> bool:
        """Whether the outputs of student and teacher can be compared entry by entry."""
        return True

    @abstractmethod
    def metrics(self) -> Metrics:
        """A fresh, empty collector."""

    @abstractmethod
    def example(self, batch: Batch) -> Batch:
        """A batch of one, for latency, FLOPs and probes."""

    @abstractmethod
    def check_outputs(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> None:
        """Refuse, with a sentence, class counts or vocabularies that do not match each other or the labels."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of ``positions`` and of ``labelled`` positions in a batch, before any forward pass, and of ``groups``
        where there is an alignment; the sum of their weights for a batch with weights per sample (``weight``).

        0-d tensors on the batch's device, so that asking does not wait for the device."""
        labels, mask = self.targets(batch)
        if labels is None:
            raise ValueError(f"{self.name}: a task without labels must define counts itself")
        soft = labels.dtype.is_floating_point
        positions = mask if mask is not None else torch.ones(labels.shape[: 1 if soft else None], device=labels.device)
        counted = {"positions": positions, "labelled": positions if soft else (labels != IGNORE_INDEX) * positions}
        alignment = self.alignment(batch)
        if alignment is not None:
            counted["groups"] = Alignment.firsts(alignment.student_groups) * positions
        if "weight" in batch:
            weights = batch["weight"].view(-1, *[1] * (positions.ndim - 1))
            counted = {kind: where * weights for kind, where in counted.items()}
        return {kind: where.sum() for kind, where in counted.items()}

    def throughput(self, batch: Batch) -> int:
        """Images, texts or tokens in a batch, for the progress line; known from shapes alone."""
        return batch["input_ids"].numel() if self.unit == "tokens" else next(iter(batch.values())).shape[0]

    def better(self, metrics: Mapping[str, float], than: Mapping[str, float] | None) -> bool:
        """Whether one set of metrics beats another on :attr:`primary`; NaN beats nothing."""
        value = metrics[self.primary]
        if than is None or math.isnan(than[self.primary]):
            return than is None or not math.isnan(value)
        return value > than[self.primary] if self.higher_is_better else value < than[self.primary]
