"""Texts that a language model writes: batched, in evaluation mode, from a seed of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import ConfigError
from kdkit.features.taps import unwrap
from kdkit.models._network import Network

__all__ = ["Sampling", "complete", "ends_of"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: of the softmax; 0 takes the most probable token.
        top_p: draw from the smallest set of tokens with at least this mass.
        top_k: draw from this many best tokens; 0 draws from all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def options(self) -> dict[str, Any]:
        """As transformers calls them."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


def _generator_of(network: Network) -> Any:
    module = unwrap(network.module)
    if not callable(getattr(module, "generate", None)):
        raise ConfigError(
            f"{network.name} cannot write texts: {type(module).__name__} has no generate(); use a causal language "
            "model of transformers"
        )
    return module


def ends_of(network: Network, eos_token_id: int) -> list[int]:
    """All tokens that end a text: that of the data, and those that the network itself was set up with."""
    own = getattr(getattr(_generator_of(network), "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [] if own is None else [own]
    return sorted({int(eos_token_id), *map(int, listed)})


@contextmanager
def _plainly(module: Any) -> Iterator[None]:
    """Without what a pretrained network's own generation settings would add: penalties, cut-offs, limits."""
    from transformers import GenerationConfig

    own = {part: vars(part).get("generation_config") for part in module.modules()}  # adapters hand theirs on
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, config in own.items():
            if config is not None:
                part.generation_config = config
            else:
                vars(part).pop("generation_config", None)


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Draws that depend on the seed alone, and leave no trace in the global generators."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def complete(
    network: Network,
    prompts: Sequence[Tensor],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    pad_token_id: int,
    ends: Sequence[int],
    seed: int,
) -> list[Tensor]:
    """What the network writes after each prompt, up to and including the first token that ends a text.

    Prompts are padded on the left. The network answers in evaluation mode and is put back as it was.

    Args:
        network: of a model of transformers.
        prompts: ids ``[length]``, not empty.
        sampling: how tokens are drawn.
        max_new_tokens: at most, per prompt.
        pad_token_id: stands in front of shorter prompts.
        ends: tokens that end a text.
        seed: of the draws.

    Raises:
        ConfigError: for a network that has no ``generate``.
    """
    module = _generator_of(network)
    longest, device = max(map(len, prompts)), prompts[0].device
    ids = torch.full((len(prompts), longest), pad_token_id, device=device)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], seen[row, longest - len(prompt) :] = prompt, 1
    modes = {part: part.training for part in network.modules()}
    network.eval()
    try:
        with _plainly(module), _own_randomness(seed, device):
            written = module.generate(
                input_ids=ids,
                attention_mask=seen,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_token_id,
                eos_token_id=list(ends),
                use_cache=True,
                **sampling.options(),
            )
    finally:
        for part, mode in modes.items():
            part.training = mode
    return [_until_end(row[longest:], ends) for row in written]


def _until_end(row: Tensor, ends: Sequence[int]) -> Tensor:
    """Up to and including the first end; padding of shorter texts follows it."""
    stops = torch.isin(row, torch.tensor(list(ends), device=row.device)).nonzero()
    return row[: int(stops[0]) + 1] if len(stops) else row
