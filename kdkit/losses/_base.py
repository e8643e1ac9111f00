"""The classes every loss derives from: options stored, ``forward`` on tensors, ``compute`` on a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit.losses._checks import REDUCTIONS, check_choice, refuse
from kdkit.losses._from_heads import HeadTerm
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.schedules import BaseSchedule

__all__ = [
    "DistillationLoss",
    "FeatureLoss",
    "FeaturesLoss",
    "LabelledLogitLoss",
    "LogitLoss",
    "Probe",
    "Reduction",
    "Side",
]

Reduction = Literal["mean", "sum", "none"]
Side = Literal["student", "teacher"]


def _now(value: Any, progress: float) -> Any:
    if isinstance(value, BaseSchedule):
        return value(progress)
    if isinstance(value, tuple):
        return tuple(_now(one, progress) for one in value)
    return value


@dataclass(slots=True)
class Probe:
    """What a loss may look at once, before training starts, to size or fill itself.

    Attributes:
        outputs: one batch through student and teacher, features projected.
        num_samples: number of training samples (sample indices run from 0 to ``num_samples - 1``).
        num_classes: classes, or vocabulary entries.
        class_means: computes (or reads from the store) the teacher's mean feature per class, ``[C, D]``, for a
            pair name; deterministic transforms, labelled training samples only.
        labels: gives the label of every training sample by index, int64 ``[num_samples]`` (-100 = none).
        heads: the classifiers (``nn.Linear``) of "student" and "teacher"; the student's is the one that learns.
        layers: the tapped modules of "student" and "teacher" by pair name.
        norms: the batch norms that tapped maps come from, likewise, where there are any.
        class_names: of the data, empty where it has none.
        shared: int64 ``[M, 2]``, entries (student, teacher) that stand for the same bytes, where the teacher has a
            tokenizer of its own.
    """

    outputs: StepOutputs
    num_samples: int
    num_classes: int
    class_means: Callable[[str], Tensor] | None = None
    labels: Callable[[], Tensor] | None = None
    heads: dict[Side, nn.Module] = field(default_factory=dict)
    layers: dict[Side, dict[str, nn.Module]] = field(default_factory=dict)
    norms: dict[Side, dict[str, nn.Module]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    shared: Tensor | None = None

    def features(self, pair: str) -> tuple[Tensor, Tensor]:
        """A pair of features as the layers gave them: the student's, the teacher's."""
        assert self.outputs.teacher is not None
        return self.outputs.student.raw(pair), self.outputs.teacher.features[pair]


class DistillationLoss(nn.Module):
    """Base of all losses.

    A subclass implements ``forward`` on plain tensors and, if it fits no family below, ``compute``. It keeps each
    option of its function as an attribute of the same name. Class attributes say what it needs, so that a wrong
    pairing is refused before anything is trained.
    """

    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_class_means: ClassVar[bool] = False
    needs_index: ClassVar[bool] = False
    needs_heads: ClassVar[tuple[Side, ...]] = ()
    """Networks whose linear classifier :meth:`prepare` must find in ``probe.heads``."""

    needs_views: ClassVar[int] = 1
    """How many views of each image a batch must hold."""

    matched: ClassVar[bool] = True
    """Whether both features of a pair must have one shape: a projector then bridges a difference. False for losses
    that compare features of any shape, or bring a module of their own for that: they get what the layer gave."""

    progress: float = 0.0
    """Share of the training that lies behind; the objective keeps it up to date, options that are schedules read it."""

    counts: ClassVar[Literal["positions", "labelled", "groups"]] = "positions"
    """Which positions a mean of this loss runs over; the objective divides by their global number. Groups are those of
    :class:`~kdkit.outputs.Alignment`, or positions where there is none."""

    crosses_tokenizers: ClassVar[bool] = False
    """Whether the teacher may have a tokenizer of its own; ``compute`` then reads ``out.alignment``."""

    reference: ClassVar[str] = ""
    """Short source, e.g. ``"Hinton et al. 2015, arXiv:1503.02531, eq. 4"``; listed by ``kdkit ls losses``."""

    late_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that :meth:`prepare` fills: registered empty, and loadable from a checkpoint before it was called."""

    needs_scores: bool = False
    """Whether a number added to all of the teacher's logits changes the value: a law alone does not tell it."""

    reads_logits: ClassVar[bool] = True
    """Whether ``compute`` reads the numbers in the logits of either side. A class that overrides ``compute`` says so
    again, or it counts as one that does."""

    reads_sparse: ClassVar[bool] = False
    """Whether ``compute`` reads ``out.teacher.sparse`` where there is one, and then never the teacher's logits."""

    shared_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that this loss keeps alike on all ranks by itself (large histories): nothing sends them around in
    every step."""

    @property
    def pairs(self) -> tuple[str, ...]:
        """Names of the feature pairs that this loss reads."""
        return ()

    def teacher_temperatures(self) -> list[Any]:
        """What :meth:`compute` may divide the teacher's logits by, as the options say; 1 where they say nothing."""
        found: list[Any] = []
        for name, value in vars(self).items():
            if "temperature" not in name or value is None:
                continue
            if name == "temperature" and isinstance(value, tuple | list):
                value = value[-1]  # a pair: the student's, the teacher's
            several = value if isinstance(value, tuple | list) else [value]
            found += [each.item() if isinstance(each, Tensor) and each.numel() == 1 else each for each in several]
        return found or [1.0]

    def prepare(self, probe: Probe) -> None:
        """Called once before training, on every rank alike; size modules and fill buffers here."""

    def head_term(self) -> HeadTerm | None:
        """How :meth:`compute` is to be had from hidden states and heads, without logits; ``None`` if it is not."""
        return None

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values ``[B]`` or ``[B, T]`` with exact zeros where a position does not count,
        or a 0-d mean over the counted positions for losses that relate the samples of a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define compute or derive from a family that does")

    def teacher_of(self, out: StepOutputs) -> ModelOutput:
        """The teacher's output of a step, or an error that says that it is missing."""
        if out.teacher is None:
            refuse(type(self).__name__, "out.teacher", "the teacher's output", None, "give the run a teacher")
        return out.teacher

    def peers_of(self, out: StepOutputs) -> tuple[ModelOutput, ...]:
        """The outputs of all other networks of a step: those that learn alongside, or the one teacher."""
        return out.peers or (self.teacher_of(out),)

    def labels_of(self, out: StepOutputs) -> Tensor:
        """The labels of a step, or an error that says that they are missing."""
        if out.labels is None:
            refuse(type(self).__name__, "out.labels", "a tensor of labels", None, "use data with labels")
        return out.labels

    def options(self, *names: str, **more: Any) -> dict[str, Any]:
        """This module's options of these names and ``more``, as keyword arguments for its function; schedules give
        their value of now."""
        return {name: _now(getattr(self, name), self.progress) for name in names} | more

    def features_of(self, out: StepOutputs, pair: str) -> tuple[Tensor, Tensor]:
        """A pair of features of a step: the student's, projected if this loss is ``matched``, and the teacher's."""
        student = out.student.features[pair] if self.matched else out.student.raw(pair)
        return student, self.teacher_of(out).features[pair]

    def extra_repr(self) -> str:
        hidden = ("training", "progress")
        options = {name: value for name, value in vars(self).items() if name not in hidden and name[0] != "_"}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.late_buffers:
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(stored, Tensor) and own.numel() == 0:
                setattr(self, name, torch.empty(stored.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _ReducedLoss(DistillationLoss):
    """A loss with one value per position, whose ``forward`` reduces as told and whose ``compute`` never does.

    A subclass implements ``loss(*tensors, mask=..., reduction=...)``: one call of the pure function of the same
    name with this module's options.
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.reduction = check_choice(type(self).__name__, "reduction", reduction, REDUCTIONS)

    def loss(self, *tensors: Any, **options: Any) -> Tensor:
        """The pure function of the same name on ``tensors``, with this module's options."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")


class LogitLoss(_ReducedLoss):
    """A loss of student and teacher logits, acting on their last dimension.

    Args:
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """See the function of the same name."""
        return self.loss(student_logits, teacher_logits, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        return self.loss(out.student.logits, self.teacher_of(out).logits, mask=out.mask, reduction="none")


class LabelledLogitLoss(_ReducedLoss):
    """A logit loss that needs a label at each position; positions without one count as masked.

    Args:
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    needs_labels = True
    counts = "labelled"

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """See the function of the same name."""
        return self.loss(student_logits, teacher_logits, labels, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        teacher, labels = self.teacher_of(out), self.labels_of(out)
        return self.loss(out.student.logits, teacher.logits, labels, mask=out.mask, reduction="none")


class FeatureLoss(_ReducedLoss):
    """A loss of one pair of tapped tensors, ``forward(student_features, teacher_features)``.

    Args:
        pair: name of the pair in the ``features`` settings.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reads_logits = False

    def __init__(self, pair: str = "penultimate", reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.pair = pair

    @property
    def pairs(self) -> tuple[str, ...]:
        return (self.pair,)

    def forward(self, student_features: Tensor, teacher_features: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """See the function of the same name."""
        return self.loss(student_features, teacher_features, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        return self.loss(*self.features_of(out, self.pair), mask=out.mask, reduction="none")


class FeaturesLoss(_ReducedLoss):
    """A loss of several pairs of tapped tensors, ``forward(student_features, teacher_features)`` on two lists.

    Args:
        pairs: names of the pairs in the ``features`` settings, in the order of the network, shallow to deep.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reads_logits = False

    def __init__(self, pairs: Sequence[str], reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if isinstance(pairs, str) or not pairs or not all(isinstance(pair, str) for pair in pairs):
            refuse(type(self).__name__, "pairs", "a list of names of pairs", pairs, "for one pair: pairs=[stage4]")
        if len(set(pairs)) != len(pairs):
            refuse(type(self).__name__, "pairs", "a list without repetition", list(pairs))
        self._pairs = tuple(pairs)

    @property
    def pairs(self) -> tuple[str, ...]:
        return self._pairs

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See the function of the same name."""
        return self.loss(student_features, teacher_features, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        student, teacher = zip(*(self.features_of(out, pair) for pair in self.pairs), strict=True)
        return self.loss(list(student), list(teacher), mask=out.mask, reduction="none")
