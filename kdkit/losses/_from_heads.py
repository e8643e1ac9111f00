"""Terms of an objective from hidden states and heads, without logits: what a loss says of itself, and its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdkit.outputs import LinearHead, StepOutputs

if TYPE_CHECKING:
    from kdkit.losses._base import DistillationLoss

__all__ = ["HeadTerm", "Share", "head_term", "reads_logits", "shares"]


@dataclass(frozen=True, slots=True)
class HeadTerm:
    """How a loss is computed by a fused function.

    Attributes:
        kind: "ce" for cross-entropy with hard labels, "divergence" for
            :func:`~kdkit.losses.fused_linear_divergence`, "entries" for
            :func:`~kdkit.losses.fused_topk_divergence` on what the teacher's output holds.
        options: of that function.
        temperature: numbers: of the student, of the teacher.
        factor: of the value.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    temperature: tuple[float, float] = (1.0, 1.0)
    factor: float = 1.0

    @classmethod
    def divergence(cls, name: str, temperature: Any, factor: float = 1.0, **options: float) -> HeadTerm | None:
        """A divergence by name; ``None`` for a temperature that is a tensor, which fused functions do not take."""
        pair = tuple(temperature) if isinstance(temperature, tuple | list) else (temperature, temperature)
        if any(isinstance(value, Tensor) for value in pair):
            return None
        return cls("divergence", {"divergence": name, **options}, pair, factor)


def _provider(loss: DistillationLoss, name: str) -> int:
    """How far up its ancestors a class has this method from."""
    return next((step for step, cls in enumerate(type(loss).__mro__) if name in vars(cls)), len(type(loss).__mro__))


def head_term(loss: DistillationLoss) -> HeadTerm | None:
    """What a loss says of itself; ``None`` for one without, and for a subclass that computes something else than the
    class which says it."""
    said = _provider(loss, "head_term")
    if any(_provider(loss, name) < said for name in ("compute", "loss", "forward")):
        return None
    return loss.head_term()


def reads_logits(loss: DistillationLoss) -> bool:
    """Whether a loss needs logits, for all it says."""
    return _provider(loss, "compute") < _provider(loss, "reads_logits") or loss.reads_logits


@dataclass(frozen=True, slots=True)
class Share:
    """Values of one pass over the vocabulary.

    Attributes:
        total: ``[B, T]`` with a graph: what to add to the objective per position.
        values: name of a loss -> its own values ``[B, T]``, without weight and graph.
    """

    total: Tensor
    values: dict[str, Tensor]


def shares(out: StepOutputs, terms: Mapping[str, HeadTerm], weights: Mapping[str, float]) -> Iterator[Share]:
    """All terms, each pass over the student's vocabulary shared by as many as can share it.

    Cross-entropy joins the first other term if both have positive weights and count the same positions. A term of
    weight 0 is computed without a graph.

    Args:
        out: of the step; the student's output has a head, and the teacher's a head or entries.
        terms: name of a loss -> its term.
        weights: name -> what a value of it is worth in the objective.
    """
    alike = out.labels is None or torch.equal(out.positions(), out.labelled())
    plain = [name for name, term in terms.items() if term.kind == "ce"]
    for name, term in terms.items():
        if term.kind == "ce":
            continue
        shared = plain.pop() if plain and alike and weights[name] > 0 and weights[plain[-1]] > 0 else None
        yield _divergence(out, name, term, weights[name], shared, weights.get(shared or "", 0.0))
    for name in plain:
        yield _cross_entropy(out, name, weights[name])


def _head(head: LinearHead | None, weight: float) -> LinearHead:
    assert head is not None
    return head if weight else head.detach()


def _divergence(
    out: StepOutputs, name: str, term: HeadTerm, weight: float, shared: str | None, ce_weight: float
) -> Share:
    from kdkit.losses._fused_linear import fused_linear_divergence
    from kdkit.losses._fused_sparse import fused_topk_divergence

    student, teacher = _head(out.student.head, weight), out.teacher
    assert teacher is not None
    own = max(weight * term.factor, 0.0)
    options: dict[str, Any] = {
        **term.options,
        "weight": own or 1.0,
        "ce_weight": ce_weight,
        "student_bias": student.bias,
        "mask": out.mask,
        "reduction": "none",
        "parts": True,
    }
    labels = out.labels if shared else None
    more: dict[str, Any] = {}
    if term.kind == "entries":
        assert teacher.sparse is not None
        sparse, k = teacher.sparse.at(term.temperature[1]), options.pop("k")
        log_probs, ids = sparse.log_probs[..., :k], sparse.ids[..., :k]
        more |= {"temperature": term.temperature[0], "softcap": student.softcap, "logit_scale": student.scale}
        parts = fused_topk_divergence(student.hidden, student.weight, log_probs, ids, labels, **options, **more)
    else:
        other = _head(teacher.head, 0.0)
        more |= {"softcap": (student.softcap, other.softcap), "logit_scale": (student.scale, other.scale)}
        more |= {"temperature": term.temperature, "teacher_bias": other.bias}
        parts = fused_linear_divergence(
            student.hidden, student.weight, other.hidden, other.weight, labels, **options, **more
        )
    values = {name: term.factor * parts.divergence}
    if shared:
        values[shared] = parts.cross_entropy
    total = parts.total if own else weight * term.factor * parts.total
    return Share(total, values)


def _cross_entropy(out: StepOutputs, name: str, weight: float) -> Share:
    from kdkit.losses._fused_linear import fused_linear_divergence

    student = _head(out.student.head, weight)
    other = student.detach()  # is not read: the divergence has no weight
    parts = fused_linear_divergence(
        student.hidden,
        student.weight,
        other.hidden,
        other.weight,
        out.labels,
        weight=0.0,
        ce_weight=max(weight, 0.0) or 1.0,
        student_bias=student.bias,
        softcap=student.softcap,
        logit_scale=student.scale,
        mask=out.mask,
        reduction="none",
        parts=True,
    )
    return Share(parts.total if weight > 0 else weight * parts.total, {name: parts.cross_entropy})
