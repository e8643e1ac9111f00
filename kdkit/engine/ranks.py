"""What ranks have to agree on besides gradients: buffers, and how much counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from kdkit.data._base import Batch
from kdkit.engine.distiller import Distiller
from kdkit.errors import ServerError
from kdkit.losses._base import DistillationLoss
from kdkit.tasks._base import Task

__all__ = ["buffers_to_spread", "fetched_everywhere", "global_counts", "leave_out", "on_any_rank", "spread"]

Answers = TypeVar("Answers")


def on_any_rank(accelerator: Accelerator, here: bool) -> bool:
    """Whether it is so on any rank."""
    if accelerator.num_processes == 1:
        return here
    flag = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def fetched_everywhere(
    accelerator: Accelerator, fetch: Callable[[], Answers]
) -> tuple[Answers | None, ServerError | None]:
    """What ``fetch`` gives, or why it failed on this rank or another: all ranks fail together."""
    answers: Answers | None = None
    failure: ServerError | None = None
    try:
        answers = fetch()
    except ServerError as error:
        failure = error
    if on_any_rank(accelerator, failure is not None):
        return None, failure or ServerError("the teacher of another process failed; its message says why")
    return answers, None


def global_counts(task: Task, group: Sequence[Batch], accelerator: Accelerator) -> dict[str, Tensor]:
    """Positions that count in the micro-batches of an optimizer step, over all ranks."""
    counts = [task.counts(batch) for batch in group]
    totals = {key: torch.stack([count[key] for count in counts]).sum() for key in counts[0]}
    if accelerator.num_processes > 1:
        totals = {key: accelerator.reduce(value, "sum") for key, value in totals.items()}
    return totals


def _kept_alike(distiller: Distiller) -> set[str]:
    """Names of buffers that a loss keeps alike on all ranks by itself."""
    return {
        f"{name}.{buffer}"
        for name, part in distiller.named_modules()
        if isinstance(part, DistillationLoss)
        for buffer in part.shared_buffers
    }


def leave_out(distiller: Distiller) -> None:
    """Keep ``DistributedDataParallel`` from sending these buffers around in every step; call before it wraps."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(distiller, sorted(_kept_alike(distiller)))


def buffers_to_spread(distiller: Distiller) -> list[Tensor]:
    """The other buffers: running statistics of networks, small states of losses."""
    kept = _kept_alike(distiller)
    return [buffer for name, buffer in distiller.named_buffers() if name not in kept]


@torch.no_grad()
def spread(tensors: Iterable[Tensor]) -> None:
    """Give every rank the main process's values, in one message per type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    for group in groups.values():
        flat = broadcast(torch.cat([tensor.reshape(-1) for tensor in group]))
        for tensor, values in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(values.view_as(tensor))
