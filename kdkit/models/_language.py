"""The wrapper of causal language models, which may hand out hidden states and head instead of logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError
from kdkit.features.taps import unwrap
from kdkit.models._network import Network, logits_of
from kdkit.outputs import LinearHead, ModelOutput

__all__ = ["LanguageNetwork"]

_TOLERANCE = 2e-2
"""Largest difference between both ways to the logits, relative to the largest logit: half precision has 3 digits."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """A language model taken apart: ``softcap(scale * head(trunk(ids)))``."""

    trunk: nn.Module
    head: nn.Linear
    softcap: float | None
    scale: float


class LanguageNetwork(Network):
    """A causal language model called with ``input_ids``, ``attention_mask`` ``[B, 1, T, T]`` and ``position_ids``,
    as those of ``transformers`` are; a module of the user's own needs the same three arguments."""

    reads_teacher_tokens: bool = False
    """Whether it is shown the teacher's tokens where a batch holds a text in two tokenizations."""

    _parts: _Parts | None = None

    @property
    def attention(self) -> str:
        """The attention implementation, which decides the form of the mask."""
        config = getattr(self.module, "config", None)
        return getattr(config, "_attn_implementation", None) or "sdpa"

    @property
    def fused(self) -> bool:
        """Whether answers hold hidden states and the head instead of logits."""
        return self._parts is not None

    def call(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return logits_of(self.module(**inputs, **self._options()))

    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if hasattr(self.module, "config") else {}

    def answer(self, inputs: Mapping[str, Tensor]) -> ModelOutput:
        if self._parts is None:
            return super().answer(inputs)
        head = self._states(self._parts, inputs)
        if self._tap is not None:
            self._tap.skipped(self._parts.head, head.hidden)
        return ModelOutput(head.placeholder(), head=head)

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        (self.module if self._parts is None else self._parts.trunk).compile(**options)

    def fuse(self, inputs: Mapping[str, Tensor]) -> None:
        """Hand out hidden states and the head instead of logits from now on.

        Args:
            inputs: of a few samples: both ways must lead to the same logits on them.

        Raises:
            ConfigError: if the model is not a trunk and a linear head, or does more with its logits than is known here;
                the sentence says what stands in the way.
        """
        parts = self._taken_apart()
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                expected, found = self.call(inputs), self._states(parts, inputs).logits()
        finally:
            self.module.train(was_training)
        size = float(expected.abs().max())
        if expected.shape != found.shape or not float((expected - found).abs().max()) <= _TOLERANCE * max(size, 1e-3):
            raise ConfigError(f"the {self.name} does more to its logits than its head, a scale and a soft cap")
        self._parts = parts

    @contextmanager
    def whole(self) -> Iterator[None]:
        parts, self._parts = self._parts, None
        try:
            yield
        finally:
            self._parts = parts

    def unfuse(self) -> None:
        """Hand out logits again."""
        self._parts = None

    def _states(self, parts: _Parts, inputs: Mapping[str, Tensor]) -> LinearHead:
        output = parts.trunk(**inputs, **self._options())
        hidden = output if isinstance(output, Tensor) else output[0]
        return LinearHead(hidden, parts.head.weight, parts.head.bias, parts.softcap, parts.scale)

    def _taken_apart(self) -> _Parts:
        module: Any = unwrap(self.module)
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
        trunk = inner.get_decoder() if hasattr(inner, "get_decoder") else None
        if type(head) is not nn.Linear or not isinstance(trunk, nn.Module) or trunk is inner:
            raise ConfigError(f"the {self.name} is not a trunk and a plain linear head, as those of transformers are")
        names = {name for name, child in module.named_modules() if child is head or child is inner}
        tapped = [layer for layer in self.layers.values() if layer in names]
        if tapped:
            raise ConfigError(f"the {self.name} is tapped at {tapped[0]!r}, which gives logits")
        config = getattr(inner, "config", None)
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        return _Parts(trunk, head, getattr(config, "final_logit_softcapping", None), float(scale))
