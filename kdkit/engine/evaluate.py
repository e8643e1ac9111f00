"""One pass over a split: the same code for every task, number of ranks and kind of teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from kdkit.data._base import DataModule, Split
from kdkit.models._network import Network
from kdkit.outputs import StepOutputs
from kdkit.tasks._base import Task
from kdkit.teachers._base import Teacher

__all__ = ["Evaluation", "evaluate"]


@dataclass(slots=True)
class Evaluation:
    """Metrics of one pass and what pictures are drawn from.

    Attributes:
        metrics: name -> value; see the task.
        extras: JSON-able picture data.
    """

    metrics: dict[str, float]
    extras: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    network: Network | Teacher,
    *,
    task: Task,
    data: DataModule,
    split: Split,
    batch_size: int,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> Evaluation:
    """Run a network over a split and merge what all ranks saw; each sample counts exactly once.

    Args:
        network: put into evaluation mode for the pass and back afterwards; a teacher answers as it always does.
        task: says what is measured.
        data: the data set.
        split: its split.
        batch_size: samples per batch; the result does not depend on it.
        accelerator: device, autocast and ranks.
        teacher: adds agreement with the teacher when given, if the task can compare the two.
    """
    module = network if isinstance(network, Network) else None
    was_training = module is not None and module.training
    if module is not None:
        module.eval()
    metrics = task.metrics()
    try:
        with accelerator.autocast():
            for batch in data.batches(
                split,
                batch_size,
                train=False,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                device=accelerator.device,
            ):
                labels, mask = task.targets(batch)
                other = teacher(batch) if teacher is not None and task.one_vocabulary else None
                output = task.forward(module, batch) if module is not None else network(batch)
                metrics.update(StepOutputs(output, other, labels, mask), batch)
    finally:
        if module is not None:
            module.train(was_training)
    if accelerator.num_processes > 1:
        metrics.merge(gather_object([metrics.state()]))
    return Evaluation(metrics.compute(), metrics.extras())
