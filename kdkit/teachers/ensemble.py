"""Several teachers that answer as one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from kdkit.data._base import Batch
from kdkit.errors import ConfigError, did_you_mean
from kdkit.outputs import ModelOutput
from kdkit.teachers._base import Teacher

__all__ = ["EnsembleTeacher", "checked_shares"]


class EnsembleTeacher(Teacher):
    r"""The mean of several teachers, each with a share :math:`w_i \ge 0`, :math:`\sum_i w_i = 1`.

    ``"probs"`` gives :math:`\log \sum_i w_i\, \mathrm{softmax}(z_i)`, computed in log space and float32: logits
    whose softmax is the mean of the members' probabilities. ``"logits"`` gives :math:`\sum_i w_i z_i`, whose
    softmax is their normalised geometric mean. At a temperature other than 1 a loss divides these values by it, so
    with ``"probs"`` it softens the mean and does not average softened members.

    Args:
        teachers: one or more; the features of an ensemble of one are that teacher's.
        combine: ``"probs"`` or ``"logits"``.
        shares: one number above 0 per teacher, divided by their sum; ``None`` for equal ones.

    Raises:
        ConfigError: for no teacher at all, another word, or shares that are none.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        combine: Literal["probs", "logits"] = "probs",
        shares: Sequence[float] | None = None,
    ) -> None:
        if not teachers:
            raise ConfigError("an ensemble needs at least one teacher, got none")
        if combine not in ("probs", "logits"):
            hint = did_you_mean(combine, ["probs", "logits"])
            raise ConfigError(f"combine must be 'probs' or 'logits', got {combine!r}{hint}")
        self.teachers = list(teachers)
        self.combine = combine
        self.shares = checked_shares(shares, len(self.teachers))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ModelOutput:
        """Combined logits; features only from an ensemble of one."""
        first = self.teachers[0](batch)
        if len(self.teachers) == 1:
            return first
        total = self._term(first, self.shares[0])
        for number, teacher in enumerate(self.teachers[1:], start=2):
            term = self._term(teacher(batch), self.shares[number - 1])
            if term.shape != total.shape:
                raise ConfigError(
                    f"the members of an ensemble must have equally many classes, got {total.shape[-1]} and "
                    f"{term.shape[-1]} (member {number}); leave that member out"
                )
            total = torch.logaddexp(total, term) if self.combine == "probs" else total + term
        whole = math.fsum(self.shares)
        return ModelOutput(total - math.log(whole) if self.combine == "probs" else total / whole)

    def _term(self, output: ModelOutput, share: float) -> torch.Tensor:
        logits = output.logits.float()
        return logits.log_softmax(-1) + math.log(share) if self.combine == "probs" else logits * share

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the members and how they are combined."""
        shares = [] if len(set(self.shares)) == 1 else [str(share / math.fsum(self.shares)) for share in self.shares]
        text = " ".join([self.combine, *(teacher.identity for teacher in self.teachers), *shares])
        return self.teachers[0].identity if len(self.teachers) == 1 else hashlib.sha256(text.encode()).hexdigest()

    def tap(self, layers: Mapping[str, str]) -> None:
        """Record layers of an ensemble of one.

        Raises:
            ConfigError: for several members, whose features have nothing in common to be averaged.
        """
        if layers and len(self.teachers) > 1:
            raise ConfigError(
                f"features ({', '.join(layers)}) can not be taken from an ensemble of {len(self.teachers)} teachers; "
                "use losses on logits, or one teacher (teacher.ensemble=1 teacher.members=[])"
            )
        self.teachers[0].tap(layers)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> EnsembleTeacher:
        """Move all members."""
        for teacher in self.teachers:
            teacher.to(device, dtype)
        return self

    def compile(self, **options: object) -> None:
        """Compile all members."""
        for teacher in self.teachers:
            teacher.compile(**options)


def checked_shares(shares: Any, count: int) -> list[float]:
    """One share per teacher; equal ones for ``None``.

    Raises:
        ConfigError: for another number of them, or one that is not above 0.
    """
    if shares is None:
        return [1.0] * count
    listed = list(shares) if isinstance(shares, list | tuple) else []
    good = [isinstance(each, int | float) and not isinstance(each, bool) and 0 < each < math.inf for each in listed]
    if len(good) != count or not all(good):
        raise ConfigError(
            f"teacher.shares must hold one number above 0 for each of the {count} teachers, got {shares!r}"
        )
    return [float(share) for share in listed]
