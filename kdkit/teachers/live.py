"""A teacher that is a network in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data._base import Batch
from kdkit.features.taps import unwrap
from kdkit.models._network import Network, VisionNetwork
from kdkit.outputs import ModelOutput
from kdkit.tasks._base import Task
from kdkit.teachers._base import Teacher

__all__ = ["LiveTeacher", "network_identity"]


class LiveTeacher(Teacher):
    """A frozen network, run on every batch in evaluation mode.

    Args:
        network: the network; its parameters stop requiring gradients.
        task: knows how to run it on a batch.
        name: how reports call it; the network's name if ``None``.
    """

    def __init__(self, network: Network, task: Task, *, name: str | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.task = task
        self.name = network.name if name is None else name
        self._identity: str | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ModelOutput:
        """Outputs for a batch, without a gradient."""
        if self.network.training:
            self.network.eval()
        return self.task.forward(self.network, batch)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over architecture, input adapter and weights; computed once, before any change of type."""
        if self._identity is None:
            self._identity = network_identity(self.network)
        return self._identity

    def tap(self, layers: Mapping[str, str]) -> None:
        """Record these layers (pair name -> layer name) in every answer."""
        self.network.tap(layers)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> LiveTeacher:
        """Move the network, and store its weights as ``dtype`` if one is given."""
        if dtype is not None:
            self._identity = self.identity
            self.network.module.to(dtype=dtype)
        self.network.to(device)
        return self

    def compile(self, **options: object) -> None:
        """Compile the network in place."""
        self.network.compile(**options)


def network_identity(network: Network) -> str:
    """SHA-256 (hex) over what a network is: its printed structure, how it adapts its input, and every weight."""
    module = unwrap(network.module)
    digest = hashlib.sha256()
    digest.update(f"{type(module).__module__}.{type(module).__qualname__}\n{module}\n".encode())
    digest.update(_settings(module).encode())
    if isinstance(network, VisionNetwork):
        digest.update(f"{network.input_size} {network.mean.tolist()} {network.std.tolist()}\n".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _settings(module: nn.Module) -> str:
    """The configuration of a transformers model: it decides things (norms, rotary base) that no weight shows."""
    config = getattr(module, "config", None)
    to_json = getattr(config, "to_json_string", None)
    return str(to_json(use_diff=True)) if callable(to_json) else ""


def _bytes(value: Tensor) -> Any:
    flat = value.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy()
