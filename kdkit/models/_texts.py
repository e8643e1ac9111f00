"""The wrapper of networks that answer once per text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from torch import Tensor

from kdkit.features.taps import unwrap
from kdkit.models._network import Network, logits_of

__all__ = ["TextNetwork"]


class TextNetwork(Network):
    """A network of whole texts, such as a classifier, called with ``input_ids`` and ``attention_mask`` ``[B, T]`` and,
    if it knows more than one kind of token, ``token_type_ids``, as those of ``transformers`` are."""

    @property
    def kinds(self) -> bool:
        """Whether the module tells the second text of a pair by ``token_type_ids``."""
        module = unwrap(self.module)
        count = getattr(getattr(module, "config", None), "type_vocab_size", 2)
        return (count or 0) > 1 and "token_type_ids" in inspect.signature(module.forward).parameters

    def call(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return logits_of(self.module(**inputs))
