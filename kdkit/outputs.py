"""What networks return and losses receive: two small typed records, torch only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["IGNORE_INDEX", "Alignment", "LinearHead", "ModelOutput", "SparseLogits", "StepOutputs"]

IGNORE_INDEX = -100
"""Label of a position without one: an unlabelled image, a padded or prompt token."""


@dataclass(slots=True)
class SparseLogits:
    r"""A distribution of which only some classes are known one by one: a teacher's k best, out of a cache.

    Attributes:
        ids: int64 ``[..., k]``, distinct classes.
        log_probs: float32 ``[..., k]``, their log-probabilities at :attr:`temperature`.
        rest: float32 ``[...]``, the logarithm of what all other classes have together; -inf for nothing.
        classes: number of classes, or size of the vocabulary.
        temperature: :math:`T` of the law :math:`\mathrm{softmax}(z / T)` that the numbers belong to.
    """

    ids: Tensor
    log_probs: Tensor
    rest: Tensor
    classes: int
    temperature: float = 1.0

    @property
    def complete(self) -> bool:
        """Whether every class is known."""
        return self.ids.shape[-1] == self.classes

    def at(self, temperature: float | Tensor) -> SparseLogits:
        """The same law at another temperature.

        Raises:
            ValueError: unless it is the same temperature, or every class is known: what the others have together does
                not tell how they would share it.
        """
        if not isinstance(temperature, Tensor) and temperature == self.temperature:
            return self
        if not self.complete:
            raise ValueError(
                f"SparseLogits.at: temperature must be {self.temperature:g}, at which {self.ids.shape[-1]} of "
                f"{self.classes} classes are known, got {temperature}; know all of them, or keep that temperature"
            )
        cool = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) and temperature.ndim else temperature
        number = float(temperature) if not isinstance(temperature, Tensor) or not temperature.ndim else math.nan
        logits = self.log_probs * (self.temperature / cool)
        return SparseLogits(self.ids, logits.log_softmax(dim=-1), self.rest, self.classes, number)

    def dense(self) -> Tensor:
        r"""Logits ``[..., C]`` of this law, the rest spread evenly: their softmax at :attr:`temperature` gives the
        known classes what they have and every other one :math:`e^{rest} / (C - k)`."""
        others = self.classes - self.ids.shape[-1]
        floor = self.rest - math.log(others) if others else torch.full_like(self.rest, -math.inf)
        shape = (*self.rest.shape, self.classes)
        return floor.unsqueeze(-1).expand(shape).scatter(-1, self.ids, self.log_probs).mul_(self.temperature)


@dataclass(slots=True)
class LinearHead:
    r"""Logits that have not been computed: hidden states, and the layer that would make logits of them.

    .. math:: z = a \tanh\!\left( \frac{s\, (h W^\top + b)}{a} \right)

    with the soft cap :math:`a` (without one :math:`z = s (h W^\top + b)`) and the scale :math:`s`.

    Attributes:
        hidden: float ``[..., H]``.
        weight: float ``[V, H]``.
        bias: ``[V]`` or ``None``.
        softcap: positive, or ``None``.
        scale: positive.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, hidden: Tensor | None = None) -> Tensor:
        """``[..., V]`` for these states, or for all."""
        states = self.hidden if hidden is None else hidden
        z = torch.nn.functional.linear(states.to(self.weight.dtype), self.weight, self.bias)
        z = z if self.scale == 1 else z * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def detach(self) -> LinearHead:
        """The same values cut from the graph."""
        bias = None if self.bias is None else self.bias.detach()
        return LinearHead(self.hidden.detach(), self.weight.detach(), bias, self.softcap, self.scale)

    def placeholder(self) -> Tensor:
        """In place of the logits: their shape, no memory, NaN everywhere."""
        return self.hidden.new_full((), math.nan).expand(*self.hidden.shape[:-1], len(self.weight))


@dataclass(slots=True)
class ModelOutput:
    """What a network says about one batch; the same for teacher and student.

    Attributes:
        logits: ``[B, C]`` for images, ``[B, T, V]`` for text, already aligned with the labels.
        features: tapped tensors by pair name (``{"penultimate": [B, D]}``), on the student side after projection.
        unprojected: the tapped tensors whose projection stands in ``features``, as the layer gave them.
        sparse: what is known of a law that was kept in part; ``logits`` are then :meth:`SparseLogits.dense`, or
            without memory and NaN everywhere if no term of the objective reads them.
        head: hidden states and the layer that reads them, where every term can do without logits; ``logits`` are then
            :meth:`LinearHead.placeholder`.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    unprojected: dict[str, Tensor] = field(default_factory=dict)
    sparse: SparseLogits | None = None
    head: LinearHead | None = None

    def detach(self) -> ModelOutput:
        """The same values cut from the graph: how one learner shows itself to another."""
        cut = ({name: value.detach() for name, value in group.items()} for group in (self.features, self.unprojected))
        features, unprojected = cut
        head = None if self.head is None else self.head.detach()
        return ModelOutput(self.logits.detach(), features, unprojected, self.sparse, head)

    def rows(self, index: Tensor) -> Tensor:
        """Logits ``[N, C]`` at these positions, counted over all dimensions but the last: computed now if they have
        not been."""
        if self.head is not None:
            return self.head.logits(self.head.hidden.flatten(0, -2)[index])
        return self.logits.flatten(0, -2)[index]

    def raw(self, pair: str) -> Tensor:
        """A tapped tensor as the layer gave it."""
        return self.unprojected.get(pair, self.features[pair])


@dataclass(slots=True)
class Alignment:
    """Which tokens of two tokenizations of one text cover the same bytes: consecutive tokens in groups.

    Groups count from 1 in each row, and the same numbers stand in a row of both sides; 0 is in no group.

    Attributes:
        student_groups: int64 ``[B, T]``, group of the token that each position of the student predicts.
        teacher_groups: int64 ``[B, T']``, the same for the teacher.
        student_tokens: int64 ``[B, T]``, that token.
        teacher_tokens: int64 ``[B, T']``.
    """

    student_groups: Tensor
    teacher_groups: Tensor
    student_tokens: Tensor
    teacher_tokens: Tensor

    @staticmethod
    def firsts(groups: Tensor) -> Tensor:
        """Bool ``[B, T]``: the positions that predict the first token of a group."""
        before = torch.nn.functional.pad(groups[:, :-1], (1, 0))
        return (groups != 0) & (groups != before)


@dataclass(slots=True)
class StepOutputs:
    """Everything that a loss may ask for in one step.

    Attributes:
        student: output of the network that learns.
        teacher: output of the network that it learns from, or ``None`` for a network alone.
        labels: int64 ``[B]`` or ``[B, T]`` (:data:`IGNORE_INDEX` = no label), float ``[B, C]`` for soft labels,
            or ``None``.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts; ``None`` means that every position does.
        progress: share of the training that lies behind, 0 to 1; schedules read it.
        extra: what few losses need, by name: ``index`` (sample index ``[B]``), ``tokens`` (bool ``[B, T]``, false at
            padding, for texts with one answer each), ...
        views: how many views of each image the batch holds, one block of ``B / views`` rows after the other: row
            ``i`` and row ``i + B / views`` show the same sample. Labels and index are repeated likewise.
        weights: one weight per sample, ``[B]``, at least 0; ``None`` counts every sample once.
        peers: online: the outputs of all other networks that learn, ``teacher`` being the first of them.
        alignment: where the teacher has a tokenizer of its own, and its logits positions and entries of their own.
    """

    student: ModelOutput
    teacher: ModelOutput | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    progress: float = 0.0
    extra: dict[str, Tensor] = field(default_factory=dict)
    views: int = 1
    weights: Tensor | None = None
    peers: tuple[ModelOutput, ...] = ()
    alignment: Alignment | None = None

    def groups(self) -> Tensor:
        """Bool mask of the positions that predict the first token of a group of the alignment; without one, of all
        that count."""
        if self.alignment is None:
            return self.positions()
        return Alignment.firsts(self.alignment.student_groups) & self.positions()

    def positions(self) -> Tensor:
        """Bool mask of the positions that count, shaped like the logits without their last dimension."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.student.logits.shape[:-1], dtype=torch.bool, device=self.student.logits.device)

    def labelled(self) -> Tensor:
        """Bool mask of the positions that count and carry a label."""
        positions = self.positions()
        if self.labels is None:
            return torch.zeros_like(positions)
        if self.labels.dtype.is_floating_point:
            return positions
        return positions & (self.labels != IGNORE_INDEX)
