"""Made-up networks of two sizes, and the loss from logits that exist."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.kernels._divergences import divergence_of


def laws(z: Tensor, cap: float | None, scale: float) -> Tensor:
    """Logits from raw ones."""
    z = scale * z
    return z if cap is None else cap * torch.tanh(z / cap)


def both(value: Any) -> tuple[Any, Any]:
    """A pair."""
    return value if isinstance(value, tuple) else (value, value)


@dataclass
class Heads:
    """Hidden states, heads and biases of student and teacher in float64, labels and a mask."""

    rows: int = 23
    entries: int = 41
    widths: tuple[int, int] = (8, 12)
    dtype: torch.dtype = torch.float64
    learning: tuple[str, ...] = ("hidden", "head", "bias")
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(3)
        for side, width in zip(("student", "teacher"), self.widths, strict=True):
            for name, shape in (
                ("hidden", (self.rows, width)),
                ("head", (self.entries, width)),
                ("bias", (self.entries,)),
            ):
                value = torch.randn(*shape, generator=rng, dtype=torch.float64).to(self.dtype)
                self.tensors[f"{side}_{name}"] = value.requires_grad_(side == "student" and name in self.learning)
        self.labels = torch.randint(self.entries, (self.rows,), generator=rng)
        self.labels[::5] = -100
        self.mask = torch.rand(self.rows, generator=rng) > 0.2

    @property
    def learnt(self) -> list[Tensor]:
        return [value for value in self.tensors.values() if value.requires_grad]

    def dense(self, **options: Any) -> Tensor:
        """The same loss, per position, from logits that exist."""
        t = self.tensors
        caps, scales, cooling = (
            both(options.get(k, v)) for k, v in (("softcap", None), ("logit_scale", 1.0), ("temperature", 1.0))
        )
        z = [
            laws(t[f"{side}_hidden"] @ t[f"{side}_head"].T + t[f"{side}_bias"], cap, scale)
            for side, cap, scale in zip(("student", "teacher"), caps, scales, strict=True)
        ]
        divergence = divergence_of("dense", options.get("divergence", "kl"), options.get("alpha"), options.get("beta"))
        log_q, log_p = (torch.log_softmax(each / cool, -1) for each, cool in zip(z, cooling, strict=True))
        values = options.get("weight", 1.0) * divergence.rows(log_p, log_q)
        keep = torch.ones(self.rows, dtype=torch.bool) if options.get("mask") is None else options["mask"]
        if options.get("labels") is not None:
            keep = keep & (options["labels"] != -100)
            ce = F.cross_entropy(z[0], options["labels"], reduction="none")
            values = values + options.get("ce_weight", 0.0) * ce
        return torch.where(keep, values, 0.0)
