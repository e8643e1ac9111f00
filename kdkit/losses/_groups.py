"""What losses across tokenizers share: rows of two networks for the same bytes of a text.

A group is a run of tokens of the one and a run of tokens of the other that cover the same bytes. Its row is what a
network says at the position that predicts the first of its tokens; what it says of the tokens after the first one, if
they are the ones that follow, is a single number, the *rest*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdkit.losses._base import _ReducedLoss
from kdkit.losses._checks import Temperature, _check_float, check_mask, refuse, temperatures
from kdkit.losses._ops import clean, pick, soften
from kdkit.outputs import Alignment, StepOutputs

__all__ = ["GroupRows", "GroupsLoss", "check_sides", "group_rows", "padded_gap", "probabilities"]


@dataclass(slots=True)
class GroupRows:
    """One row per group, in the order of the batch.

    Attributes:
        student: logits ``[N, V]``.
        teacher: logits ``[N, V']``.
        student_rest: logarithm of the probability of all tokens after the first one, ``[N]``; 0 where there is none.
        teacher_rest: likewise.
        where: bool ``[B, T]``, the student's positions that the rows are of.
    """

    student: Tensor
    teacher: Tensor
    student_rest: Tensor
    teacher_rest: Tensor
    where: Tensor


def group_rows(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    alignment: Alignment,
    *,
    temperature: tuple[float, float] = (1.0, 1.0),
    mask: Tensor | None = None,
) -> GroupRows:
    """The rows of all groups whose first token is at a position that counts.

    Args:
        name: the loss, for error messages.
        student_logits: ``[B, T, V]``.
        teacher_logits: ``[B, T', V']``.
        alignment: which position belongs to which group.
        temperature: at which the rest is taken, of the student and of the teacher.
        mask: bool ``[B, T]``, or ``None``.

    Raises:
        InputError: if logits and alignment are not of one batch, or a group is on one side alone.
    """
    sides = []
    for side, logits, groups, tokens, one in (
        ("student", student_logits, alignment.student_groups, alignment.student_tokens, temperature[0]),
        ("teacher", teacher_logits, alignment.teacher_groups, alignment.teacher_tokens, temperature[1]),
    ):
        if logits.ndim != 3 or logits.shape[:2] != groups.shape:
            refuse(name, f"{side}_logits", f"float of shape {[*groups.shape, 'V']}, as its groups", logits)
        sides.append(_side(logits, groups, tokens, one))
    (firsts, student, student_rest), (_, teacher, teacher_rest) = sides
    if len(student) != len(teacher):
        rule = f"of {len(student)} groups, as alignment.student_groups"
        refuse(name, "alignment.teacher_groups", rule, len(teacher), "both sides hold the same numbers in each row")
    if mask is not None:
        keep = mask[firsts]
        student, teacher, firsts = student[keep], teacher[keep], firsts & mask
        student_rest, teacher_rest = student_rest[keep], teacher_rest[keep]
    return GroupRows(student, teacher, student_rest, teacher_rest, firsts)


def _side(logits: Tensor, groups: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where groups begin, their rows and their rests."""
    firsts = Alignment.firsts(groups)
    later = (groups != 0) & ~firsts
    rows = logits[firsts]
    number = firsts.flatten().cumsum(0).view_as(firsts) - 1
    rest = clean(rows.new_zeros(len(rows), 1), None).squeeze(1)
    said = torch.log_softmax(soften(clean(logits[later], None), temperature), dim=-1)
    return firsts, rows, rest.index_add(0, number[later], pick(said, tokens[later]).to(rest.dtype))


def check_sides(name: str, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None) -> None:
    """Floats ``[..., V]`` and ``[..., V']`` with the same positions, and a mask that fits them."""
    form = "float of shape [B, C] or [B, T, V]"
    _check_float(name, "student_logits", student_logits, 1, form)
    _check_float(name, "teacher_logits", teacher_logits, 1, form)
    if teacher_logits.shape[:-1] != student_logits.shape[:-1]:
        rule = f"of the positions of student_logits, {list(student_logits.shape[:-1])}"
        refuse(name, "teacher_logits", rule, teacher_logits, "align the two first: one row of each per group of tokens")
    check_mask(name, mask, student_logits.shape[:-1])


def probabilities(
    name: str, student_logits: Tensor, teacher_logits: Tensor, temperature: Temperature, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both at their temperatures, the teacher's without gradient and in the student's type."""
    both = temperatures(name, temperature, student_logits)
    sides = (student_logits, teacher_logits.detach())
    student, teacher = (
        torch.log_softmax(soften(clean(side, mask), one), dim=-1) for side, one in zip(sides, both, strict=True)
    )
    return student, teacher.to(student.dtype)


def padded_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """``sum_i |s_i - t_i|`` over entries ``[..., V]`` and ``[..., V']`` in falling order, the shorter row followed by
    zeros."""
    student, teacher = (side.sort(dim=-1, descending=True).values for side in (student, teacher))
    shared = min(student.shape[-1], teacher.shape[-1])
    gap = (student[..., :shared] - teacher[..., :shared]).abs().sum(dim=-1)
    longer = student if student.shape[-1] > shared else teacher
    return gap + longer[..., shared:].sum(dim=-1)


class GroupsLoss(_ReducedLoss):
    """A loss of rows of logits of two networks whose vocabularies may differ: per group of tokens that cover the same
    bytes, or per position where both share a tokenizer.

    Args:
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    crosses_tokenizers = True
    counts = "groups"
    reads_rest: ClassVar[bool] = False
    """Whether ``loss`` takes ``student_rest`` and ``teacher_rest``."""

    temperature: Any

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """See the function of the same name."""
        return self.loss(student_logits, teacher_logits, mask=mask, reduction=self.reduction)

    def compute(self, out: StepOutputs) -> Tensor:
        """Per-position values of one step: those of a group at the position that predicts its first token."""
        student, teacher = out.student.logits, self.teacher_of(out).logits
        if out.alignment is None:
            return self.loss(student, teacher, mask=out.mask, reduction="none")
        name, own = type(self).__name__, self.options("temperature")["temperature"]
        pair = tuple(own) if isinstance(own, tuple | list) else (own, own)
        rows = group_rows(name, student, teacher.detach(), out.alignment, temperature=pair, mask=out.mask)
        rests = {"student_rest": rows.student_rest, "teacher_rest": rows.teacher_rest} if self.reads_rest else {}
        values = self.loss(rows.student, rows.teacher, **rests, mask=None, reduction="none")
        return values.new_zeros(rows.where.shape).masked_scatter(rows.where, values)
