"""Sets that fit into memory: tensors per split, moved to the device once, gathered there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kdkit.data._base import Batch, DataModule, Split
from kdkit.data._order import generator, micro_batches, permutation

__all__ = ["InMemory", "Resident"]

RESIDENT_BYTES = 2 * 1024**3
"""A split up to this size is copied to the device as a whole, a bigger one stays in host memory."""


class Resident:
    """The tensors of one split, with samples on the first dimension.

    Args:
        tensors: by name, all of the same length.
        limit: size in bytes above which :meth:`on` leaves them where they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], limit: int = RESIDENT_BYTES) -> None:
        self.tensors = dict(tensors)
        self._fits = sum(tensor.nbytes for tensor in self.tensors.values()) <= limit
        self._copies: dict[torch.device, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def on(self, device: torch.device | str) -> dict[str, Tensor]:
        """The tensors on a device, copied at the first call, or those in host memory when they are too big."""
        device = torch.device(device)
        if device.type == "cpu" or not self._fits:
            return self.tensors
        if device not in self._copies:
            self._copies[device] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return self._copies[device]


class InMemory(DataModule):
    """A data set whose splits are held as tensors. Subclasses fill ``_splits`` and write :meth:`_finish`."""

    _splits: Mapping[Split, Resident]

    @abstractmethod
    def _finish(self, batch: Batch, random: torch.Generator | None) -> Batch:
        """Turn gathered rows (with their ``index``) into a batch; ``random`` is given for training batches only."""

    def size(self, split: Split) -> int:
        """Number of samples in a split; 0 when there is none."""
        return len(self._splits[split]) if split in self._splits else 0

    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """See :meth:`DataModule.batches`."""
        size = self.size(split)
        numbers = micro_batches(size, batch_size, train=train, start=start, rank=rank, world_size=world_size)
        if not numbers:
            return
        held = self._splits[split].on(device)
        order = permutation(size, seed, epoch) if train else torch.arange(size)
        order = order.to(next(iter(held.values())).device)
        for j in numbers:
            index = order[j * batch_size : (j + 1) * batch_size]
            batch = {name: tensor[index].to(device, non_blocking=True) for name, tensor in held.items()}
            batch["index"] = index.to(device, non_blocking=True)
            yield self._finish(batch, generator("augment", seed, epoch, j) if train else None)
