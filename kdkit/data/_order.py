"""Which sample comes when: every order and every random draw is a function of a key, never of global state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from kdkit.errors import DataError, InputError

__all__ = ["generator", "micro_batches", "permutation"]


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded from a key such as ``("augment", seed, epoch, batch number)``.

    Random numbers are drawn on the CPU and then moved, so that every device sees the same ones.
    """
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: int64 ``[size]``, drawn from ``(seed, epoch)``."""
    return torch.randperm(size, generator=generator("order", seed, epoch))


def micro_batches(
    size: int, batch_size: int, *, train: bool, start: int = 0, rank: int = 0, world_size: int = 1
) -> range:
    """Numbers of the micro-batches that a rank gets in an epoch, the first ``start`` of them left out.

    Micro-batch ``j`` goes to rank ``j % world_size``. With ``train`` the incomplete micro-batch at the end is
    dropped, and so are the last few when ``world_size`` does not divide their number, because ranks that take a
    different number of steps wait for each other for ever.

    Raises:
        InputError: when an argument is out of range.
        DataError: when ``train`` and the split is too small for one micro-batch per rank.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if start < 0:
        raise InputError(f"start must not be negative, got {start}")
    if not 0 <= rank < world_size:
        raise InputError(f"rank must be between 0 and world_size - 1 = {world_size - 1}, got {rank}")
    if not train:
        return range(rank + start * world_size, -(-size // batch_size), world_size)
    total = size // batch_size // world_size * world_size
    if total == 0:
        raise DataError(
            f"batch_size {batch_size} on {world_size} process(es) needs {batch_size * world_size} training samples "
            f"for one step, got {size}; use a smaller batch_size or more data"
        )
    return range(rank + start * world_size, total, world_size)
