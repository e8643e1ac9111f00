"""The wrapper both teacher and student live in: a module, its input adapter, its taps and its head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.errors import ConfigError
from kdkit.features.taps import FeatureTap, LayerInfo, find_head, list_layers
from kdkit.outputs import ModelOutput

__all__ = ["Network", "VisionNetwork", "logits_of"]


class Network(nn.Module):
    """A ``torch.nn.Module`` that answers with a :class:`~kdkit.outputs.ModelOutput`.

    Args:
        module: any module. What it returns may be a tensor, or an object with ``logits``.
        name: how reports call it.
    """

    def __init__(self, module: nn.Module, *, name: str = "network") -> None:
        super().__init__()
        self.module = module
        self.name = name
        self._tap: FeatureTap | None = None

    def tap(self, layers: Mapping[str, str]) -> None:
        """Record these layers in every forward pass: pair name -> layer name, or ``"penultimate"`` for the input
        of the classifier. An empty mapping removes the taps. Unknown names raise, listing close matches.

        Compiled code knows only the hooks of its first call, so tapping a compiled module makes it compile anew.
        """
        if self._tap is not None:
            self._tap.remove()
            self._tap = None
        if layers:
            self._tap = FeatureTap(self.module, layers)
        if getattr(self.module, "_compiled_call_impl", None) is not None or hasattr(self.module, "_orig_mod"):
            torch.compiler.reset()

    @property
    def layers(self) -> dict[str, str]:
        """The tapped layers: pair name -> layer name."""
        return {} if self._tap is None else dict(self._tap.layers)

    @property
    def head(self) -> nn.Module:
        """The last linear layer: classifier or vocabulary projection."""
        return find_head(self.module)[1]

    def list_layers(self, inputs: Mapping[str, Tensor]) -> list[LayerInfo]:
        """Name, type and output shape of every layer that can be tapped, from one forward pass on ``inputs``."""
        return list_layers(self.module, lambda: self.call(inputs))

    def call(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits that the wrapped module gives for adapted inputs."""
        raise NotImplementedError(f"{type(self).__name__} must define call; use VisionNetwork or LanguageNetwork")

    def answer(self, inputs: Mapping[str, Tensor]) -> ModelOutput:
        """What the network says, without features."""
        return ModelOutput(self.call(inputs))

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        """Compile what is called in every step, in place, with ``torch.compile``."""
        self.module.compile(**options)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """For as long as it lasts the network does all of its work, the head included."""
        yield

    def forward(self, inputs: Mapping[str, Tensor]) -> ModelOutput:
        """Logits and tapped features."""
        if self._tap is None:
            return self.answer(inputs)
        with self._tap.recording() as features:
            output = self.answer(inputs)
        output.features = dict(features)
        return output


def logits_of(output: object) -> Tensor:
    """The logits in what a module returned.

    Raises:
        ConfigError: if there are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ConfigError(f"a network must return logits or an object with .logits, got {type(output).__name__}")


class VisionNetwork(Network):
    """An image classifier that takes ``{"image": [B, C, H, W] in [0, 1]}`` and normalises by itself.

    Teacher and student may therefore disagree about mean, standard deviation and input size. The normalised image
    is cast to the type of the module's weights.

    Args:
        module: called with one tensor.
        mean: per channel, or ``None`` for no normalisation.
        std: per channel.
        input_size: side in pixels that images are resized to (bilinear, antialiased), or ``None``.
        name: how reports call it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | None = None,
        name: str = "network",
    ) -> None:
        super().__init__(module, name=name)
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor([0.0] if mean is None else list(mean)).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor([1.0] if std is None else list(std)).view(shape), persistent=False)
        self.input_size = input_size

    def prepare(self, image: Tensor) -> Tensor:
        """Resize and normalise images in [0, 1] as the module wants them."""
        if self.input_size is not None and image.shape[-2:] != (self.input_size, self.input_size):
            image = F.interpolate(
                image, size=(self.input_size, self.input_size), mode="bilinear", antialias=True, align_corners=False
            )
        image = (image - self.mean) / self.std
        weight = next(self.module.parameters(), None)
        return image if weight is None or not weight.is_floating_point() else image.to(weight.dtype)

    def call(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return logits_of(self.module(self.prepare(inputs["image"])))
