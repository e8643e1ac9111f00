"""Which GPU each worker process of a comparison gets."""

from __future__ import annotations

import os

__all__ = ["gpus_of_workers", "visible_gpus"]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` writes them."""
    import torch

    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(number) for number in range(count)]


def gpus_of_workers(workers: int) -> list[str | None]:
    """A GPU for each worker, in turn; ``None`` for all of them where there is none.

    >>> gpus_of_workers(0)
    []
    """
    gpus = visible_gpus()
    return [gpus[number % len(gpus)] if gpus else None for number in range(workers)]
