"""What the losses of tokens share: lists of layers, and what a position is for text and for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.losses._base import FeaturesLoss
from kdkit.losses._checks import check_choice, check_list, refuse
from kdkit.outputs import StepOutputs

__all__ = ["Per", "TokensLoss", "per_of", "token_lists", "token_mask", "tokens_of", "values_per"]

Per = Literal["sample", "token"]


def tokens_of(out: StepOutputs) -> Tensor | None:
    """Bool ``[B, T]``: the tokens that are no padding, of the samples that count, where texts get one answer each;
    ``None`` for images, and where every token gets an answer."""
    tokens = out.extra.get("tokens")
    if tokens is None or per_of(out) == "token":
        return None
    return tokens & out.positions().unsqueeze(1)


def token_lists(name: str, student: Any, teacher: Any, count: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Pairs of layers from two lists, of ``count`` entries or as many as the student's.

    Raises:
        InputError: for anything but two lists of that many floats with one shape ``[B, T, ...]`` of positions.
    """
    count = count if count is not None else len(student) if isinstance(student, list | tuple) else 1
    check_list(name, student, max(count, 1), "student_features")
    check_list(name, teacher, count, "teacher_features")
    for side, values in (("student_features", student), ("teacher_features", teacher)):
        for i, value in enumerate(values):
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
                refuse(name, f"{side}[{i}]", "float of shape [B, D] or [B, T, D]", value)
    for i, (one, other) in enumerate(zip(student, teacher, strict=True)):
        if one.shape[: one.ndim - 1] != student[0].shape[: student[0].ndim - 1] and one.ndim < 4:
            refuse(name, f"student_features[{i}]", "of the positions of student_features[0]", one)
        if one.shape[0] != other.shape[0]:
            refuse(name, f"teacher_features[{i}]", f"of {one.shape[0]} samples, as student_features[{i}]", other)
    return list(zip(student, teacher, strict=True))


def per_of(out: StepOutputs) -> Per:
    """What a position is in this step: a sample of images, a token of text."""
    return "sample" if out.student.logits.ndim == 2 else "token"


def token_mask(name: str, mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """``[B, T]`` for a mask ``[B]`` of samples or ``[B, T]`` of tokens.

    Raises:
        InputError: for a mask of another type or shape.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) not in ((batch,), (batch, tokens)):
        rule = f"bool of shape [{batch}] or [{batch}, {tokens}]"
        refuse(name, "mask", rule, mask, "pass mask.bool(), true where a token counts")
    return mask if mask.ndim == 2 else mask.unsqueeze(1).expand(batch, tokens)


def values_per(name: str, per: str, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Values ``[B, T]`` and their mask, or with ``per="sample"`` the means over the tokens that count, ``[B]``, and
    which samples have such tokens."""
    check_choice(name, "per", per, ("sample", "token"))
    if per == "token":
        return values, mask
    if mask is None:
        return values.mean(dim=1), None
    sums = torch.where(mask, values, 0.0).sum(dim=1)
    return sums / mask.sum(dim=1).clamp(min=1), mask.any(dim=1)


class TokensLoss(FeaturesLoss):
    """A loss of hidden states of several layers, of one shape on both sides.

    Where images give tokens ``[B, T, D]``, a position is an image, and its value the mean over its tokens; so it is
    for texts that get one answer each, whose padding is left out.

    Args:
        pairs: names of the pairs in the ``features`` settings, shallow to deep.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reads_logits = False

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        pairs: Sequence[tuple[Tensor, Tensor]] = [self.features_of(out, pair) for pair in self.pairs]
        student, teacher = ([pair[side] for pair in pairs] for side in (0, 1))
        tokens = tokens_of(out)
        if tokens is not None and all(value.shape[:-1] == tokens.shape for value in student):
            values = self.loss(student, teacher, mask=tokens, reduction="none")
            return values_per(type(self).__name__, "sample", values, tokens)[0]
        if per_of(out) == "sample":
            student, teacher = ([_as_map(value) for value in side] for side in (student, teacher))
        return self.loss(student, teacher, mask=out.mask, reduction="none")


def _as_map(value: Tensor) -> Tensor:
    return value.mT.unsqueeze(-1) if value.ndim == 3 else value


class AttentionLoss(FeaturesLoss):
    """A loss of attention maps or projections: its values are means per image, or per token of text.

    A subclass implements ``loss`` with the further option ``per``.

    Args:
        pairs: names of the pairs in the ``features`` settings.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    matched = False
    reads_logits = False

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step."""
        student, teacher = zip(*(self.features_of(out, pair) for pair in self.pairs), strict=True)
        tokens = tokens_of(out)
        mask = out.mask if tokens is None else tokens
        return self.loss(list(student), list(teacher), per=per_of(out), mask=mask, reduction="none")
