"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    r"""Keeps :math:`\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta` beside a network.

    The decay starts small and rises to ``decay`` as :math:`\min(d, (1+t)/(10+t))` over updates t, so that the first
    weights do not linger. Float buffers (running statistics) are averaged too, other buffers copied.

    Args:
        module: the network whose state is followed.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights; call after each optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = self.module.state_dict()
        floating = [name for name, value in self.shadow.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_(
            [self.shadow[name] for name in floating], [current[name].detach() for name in floating], 1.0 - decay
        )
        for name, value in self.shadow.items():
            if not value.dtype.is_floating_point:
                value.copy_(current[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the context the network carries the averaged weights."""
        own = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.shadow)
        try:
            yield
        finally:
            self.module.load_state_dict(own)

    def state(self) -> dict[str, Tensor]:
        """Averaged tensors by name, for a checkpoint."""
        return self.shadow

    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore from a checkpoint."""
        for name, value in self.shadow.items():
            value.copy_(tensors[name])
        self.updates = updates
