"""Divergences that know the teacher's law at a few entries of each row only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdkit.losses._one_pass import Rows, scale_into
from kdkit.losses._ops import log_probs, reduce
from kdkit.losses._rowwise import EvaluateRows, Side, Temperatures, by_blocks

__all__ = ["RESTS", "Entries", "SparseDivergence", "entries_rows", "sampled_rows", "sparse_block"]

RESTS = ("bucket", "renormalise", "teacher", "none")
"""What becomes of the entries that are not known."""

_LOG_2 = math.log(2)

Entries = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``entries(known, log_q, tail)``: values ``[n]`` from what is known of the teacher ``[n, m]``, the student's
log-probabilities at the entries ``[n, k]`` and the logarithm of what is left of its mass ``[n, 1]``."""


def _log_rest(log_p: Tensor) -> Tensor:
    """``log(1 - sum p)``, ``[n, 1]``; -inf where nothing is left beyond the rounding of the logarithms."""
    left = 1 - log_p.double().exp().sum(dim=-1, keepdim=True)
    noise = 8 * torch.finfo(log_p.dtype).eps
    return torch.where(left > noise, left, 0.0).log().to(log_p.dtype)


def entries_rows(rest: str, rows: Rows) -> Entries:
    """The divergence ``rows`` on the k entries, with this treatment of the others."""

    def entries(log_p: Tensor, log_q: Tensor, tail: Tensor) -> Tensor:
        if rest == "none":
            p = log_p.exp()
            return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(dim=-1)
        if rest == "renormalise":
            return rows(torch.log_softmax(log_p, dim=-1), torch.log_softmax(log_q, dim=-1))
        if rest == "bucket":
            log_p = torch.cat([log_p, _log_rest(log_p)], dim=-1)
        else:
            law = torch.log_softmax(log_p, dim=-1)
            log_p = torch.cat([law, torch.full_like(law[..., :1], -math.inf)], dim=-1)
        return rows(log_p, torch.cat([log_q, tail], dim=-1))

    return entries


def sampled_rows(known: Tensor, log_q: Tensor, tail: Tensor) -> Tensor:
    """``sum_i w_i (log p_i - log q_i)`` for ``known = [log p, w]``, ``[n, 2 k]``."""
    log_p, weights = known.chunk(2, dim=-1)
    return (weights * (log_p - log_q).masked_fill(weights == 0, 0.0)).sum(dim=-1)


def sparse_block(
    entries: Entries,
    known: Tensor,
    index: Tensor,
    logits: Tensor,
    room: Tensor,
    temperature: float | Tensor,
    learning: bool,
    repeated: bool,
) -> tuple[Tensor, Tensor]:
    """Values ``[n]`` of a block, and the gradient with respect to ``logits / T``, in ``room``.

    One exponential per entry. With :math:`a` the derivatives of the value with respect to the log-probabilities at the
    entries and :math:`a_r` that with respect to the logarithm of the remaining mass :math:`q_r`, the gradient is
    :math:`a_c - q_c A` there and :math:`q_c (a_r / q_r - A)` elsewhere, with :math:`A = \\sum a + a_r`.

    Args:
        entries: the divergence.
        known: of the teacher, ``[n, m]``.
        index: the entries, ``[n, k]``.
        logits: the student's, ``[n, V]``.
        room: of the same shape, may be ``logits``.
        temperature: a number or ``[n, 1]``.
        learning: whether the gradient is asked for; else anything is left in ``room``.
        repeated: whether an entry may occur twice in a row; ``entries`` must then be free of the remaining mass.
    """
    scale_into(logits, temperature, room)
    log_q = room.gather(-1, index)
    law = room.exp2_()
    own = law.gather(-1, index)
    if repeated:
        total = law.sum(dim=-1, keepdim=True)
        left = torch.zeros_like(total)
    else:  # the remaining mass is summed by itself: as a difference from 1 it would be noise where it is small
        law.scatter_(-1, index, 0.0)
        left = law.sum(dim=-1, keepdim=True)
        total = left + own.sum(dim=-1, keepdim=True)
    above = total.double().log2()
    log_q = (log_q - above).to(known.dtype).mul_(_LOG_2)
    tail = (left.double().log2() - above).mul_(_LOG_2).to(known.dtype)
    with torch.set_grad_enabled(learning):
        sources = [log_q.requires_grad_(learning), tail.requires_grad_(learning)]
        values = entries(known, *sources)
        summed = values.sum()
    if not learning:
        return values, law
    slope, tail_slope = torch.autograd.grad(summed, sources, allow_unused=True)
    tail_slope = torch.zeros_like(tail) if tail_slope is None else torch.where(left > 0, tail_slope, 0.0)
    whole = slope.sum(dim=-1, keepdim=True) + tail_slope
    per_mass = torch.where(left > 0, tail_slope / left, 0.0)
    law.mul_(per_mass - whole / total)
    if repeated:
        law.scatter_add_(-1, index, slope)
    else:
        law.scatter_(-1, index, slope - own * (whole / total))
    return values.detach(), law


@dataclass(slots=True)
class SparseDivergence:
    """Such a divergence on logits as a :class:`~kdkit.losses._rowwise.Computation`.

    Attributes:
        name: for error messages.
        entries: see :data:`Entries`.
        temperatures, mask, reduction: as the loss was given them, checked; the teacher's temperature is not used.
        index: the entries, ``[..., k]``.
        repeated: whether one may occur twice in a row.
    """

    name: str
    entries: Entries
    temperatures: Temperatures
    mask: Tensor | None
    reduction: str
    index: Tensor
    repeated: bool

    def plain(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The formula."""
        log_q = log_probs(student, self.temperatures[0], self.mask)
        others = log_q if self.repeated else log_q.scatter(-1, self.index, -math.inf)
        tail = torch.logsumexp(others, dim=-1, keepdim=True)
        if self.mask is not None:
            teacher = torch.where(self.mask.unsqueeze(-1), teacher, 0.0)
        values = self.entries(teacher.to(log_q.dtype), log_q.gather(-1, self.index), tail)
        return reduce(values, self.mask, self.reduction, self.name)

    def compute(self, student: Tensor, teacher: Tensor, learning: bool) -> tuple[Tensor, Tensor | None]:
        """Block by block."""
        index = self.index.reshape(-1, self.index.shape[-1])
        if self.mask is not None and student.is_cpu:
            index = index[self.mask.flatten()]

        def evaluator(student: Side, teacher: Side, scratch: Tensor) -> EvaluateRows:
            def evaluate(start: int, stop: int) -> tuple[Tensor, Tensor, float | Tensor]:
                room, scale = scratch[0, : stop - start], student.cool(start, stop)
                rows = student.rows(start, stop, room)
                known = teacher.rows(start, stop, room.new_empty(stop - start, teacher.matrix.shape[-1]))
                own = index[start:stop]
                options = scale, learning, self.repeated
                return (*sparse_block(self.entries, known, own, rows, room, *options), 1 / scale)

            return evaluate

        return by_blocks(self, student, teacher, evaluator, 1, self.name, self.reduction, learning)
