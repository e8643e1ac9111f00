"""Values and gradients of the rows of a tile, which overwrite the student's logits."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

import torch
from torch import Tensor

from kdkit.kernels._problem import Known, Network, Problem
from kdkit.losses._blocks import _POOL, scratch
from kdkit.losses._kernels import Laws, forward_kl
from kdkit.losses._one_pass import Rows, normalise_into, scale_into
from kdkit.losses._sparse import sparse_block

__all__ = ["RowsOfTile", "cap"]

_LOG_2 = 0.6931471805599453
_BLOCK = 2**18
"""Entries of a block, of which a handful fit into a core's cache."""
_ACCELERATOR_BLOCK = 2**24


class RowsOfTile:
    """``rows(student, teacher, first, weights, values)`` on the raw logits ``[n, V]`` of the rows from ``first`` on:
    values ``[2, N]`` are filled in there, and ``student`` becomes the gradient of the weighted sum."""

    def __init__(self, problem: Problem, dtype: torch.dtype, learning: bool, rooms: list[Tensor], step: int) -> None:
        self.problem, self.dtype, self.learning, self.rooms, self.step = problem, dtype, learning, rooms, step

    @classmethod
    @contextlib.contextmanager
    def of(cls, problem: Problem, dtype: torch.dtype, learning: bool, high: int) -> Iterator[RowsOfTile]:
        """For tiles of ``high`` rows, with scratch for as long as the context lasts."""
        vocabulary, device = len(problem.student.head), problem.student.hidden.device
        workers = torch.get_num_threads() if device.type == "cpu" else 1
        step = max((_BLOCK if device.type == "cpu" else _ACCELERATOR_BLOCK) // vocabulary, 1)
        step = min(step, -(-high // workers))
        count = 3 * isinstance(problem.teacher, Network) + (problem.student.softcap is not None)
        count += problem.weights[1] != 0
        with contextlib.ExitStack() as stack:
            room = stack.enter_context(scratch((workers, count, step, vocabulary), dtype, device))
            yield cls(problem, dtype, learning, list(room), step)

    def __call__(self, student: Tensor, teacher: Tensor, first: int, weights: float | Tensor, values: Tensor) -> None:
        step = self.step
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for start in range(0, len(student), step):
            todo.put(start)

        def run(room: Tensor) -> None:
            with torch.no_grad(), contextlib.suppress(queue.Empty):
                while True:
                    start = todo.get_nowait()
                    block = slice(start, min(start + step, len(student)))
                    rows = slice(first + block.start, first + block.stop)
                    own = weights if isinstance(weights, float) else weights[block].unsqueeze(-1)
                    self._block(student[block], teacher[block], rows, own, room, values)

        if len(self.rooms) == 1 or todo.qsize() == 1:
            run(self.rooms[0])
            return
        pool = _POOL.get(len(self.rooms))
        for future in [pool.submit(run, room) for room in self.rooms]:
            future.result()

    def _block(
        self, student: Tensor, teacher: Tensor, rows: slice, weights: float | Tensor, room: Tensor, values: Tensor
    ) -> None:
        problem, spare = self.problem, list(room[:, : len(student)])
        share, ce_share = problem.weights
        chain = cap(student, problem.student.softcap, None if problem.student.softcap is None else spare.pop())
        if ce_share:
            assert problem.labels is not None
            labels = problem.labels.index_select(0, problem.kept[rows]).unsqueeze(-1)
            law = spare.pop()
            values[1, rows] = _cross_entropy(student, labels, law)
        if not share:
            slope, factor = student.zero_(), 0.0
        elif isinstance(problem.teacher, Network):
            cap(teacher, problem.teacher.softcap, None)
            values[0, rows], slope, factor = self._divergence(student, teacher, problem.teacher.temperature, spare)
        else:
            values[0, rows], slope, factor = self._from_known(student, problem.teacher, rows)
        if not self.learning:
            return
        torch.mul(slope, weights * (share * factor), out=student)
        if ce_share:
            law.scatter_add_(1, labels, law.new_full((), -1.0).expand_as(labels))
            student.add_(law.mul_(weights * ce_share))
        if chain is not None:
            student.mul_(chain)

    def _from_known(self, student: Tensor, teacher: Known, rows: slice) -> tuple[Tensor, Tensor, float]:
        kept, temperature = self.problem.kept[rows], self.problem.student.temperature
        known, index = (each.index_select(0, kept) for each in (teacher.values, teacher.index))
        known = known.to(self.dtype)
        more = self.learning, teacher.repeated
        return (*sparse_block(teacher.entries, known, index, student, student, temperature, *more), 1 / temperature)

    def _divergence(
        self, student: Tensor, teacher: Tensor, temperature: float, spare: list[Tensor]
    ) -> tuple[Tensor, Tensor, float]:
        """Values ``[n]``, gradient with respect to the capped logits, and a number to multiply it by."""
        divergence = self.problem.divergence
        assert divergence is not None
        cooling = self.problem.student.temperature, temperature
        if divergence.kernel is None:
            return self._by_formula(divergence.rows, student, teacher, cooling)
        scale_into(teacher, cooling[1], teacher)
        scale_into(student, cooling[0], student)
        if divergence.kernel is forward_kl:
            return (*_forward_kl(student, teacher, spare[0], spare[1], self.learning), 1 / cooling[0])
        p, q, room = spare[:3]
        above_p, above_q = normalise_into(teacher, p), normalise_into(student, q)
        shift = above_q.floor()
        teacher.sub_((above_p - shift).to(self.dtype))
        student.sub_((above_q - shift).to(self.dtype))
        lift, lost = shift.exp2_().to(self.dtype), (above_p + above_q).squeeze(-1).to(self.dtype)
        laws = Laws(teacher, p, student, q, lift, room, _LOG_2, self.learning, lost)
        values, unit, slope, factor = divergence.kernel(laws)
        return values.mul_(unit), slope, factor / cooling[0]

    def _by_formula(
        self, formula: Rows, student: Tensor, teacher: Tensor, cooling: tuple[float, float]
    ) -> tuple[Tensor, Tensor, float]:
        log_p = torch.log_softmax(teacher / cooling[1], dim=-1)
        logits = student / cooling[0]
        with torch.set_grad_enabled(self.learning):
            values = formula(log_p, torch.log_softmax(logits.requires_grad_(self.learning), dim=-1))
            total = values.sum()
        slope = torch.autograd.grad(total, logits)[0] if total.requires_grad else torch.zeros_like(logits)
        return values.detach(), slope, 1 / cooling[0]


def cap(rows: Tensor, softcap: float | None, chain: Tensor | None) -> Tensor | None:
    """``softcap tanh(rows / softcap)`` in place; its derivative in ``chain``."""
    if softcap is None:
        return None
    rows.div_(softcap).tanh_()
    if chain is not None:
        torch.mul(rows, rows, out=chain)
        chain.neg_().add_(1.0)
    rows.mul_(softcap)
    return chain


def _cross_entropy(logits: Tensor, labels: Tensor, law: Tensor) -> Tensor:
    """Of each row; the law goes into ``law``."""
    scale_into(logits, 1.0, law)
    own = law.gather(-1, labels)
    above = normalise_into(law, law)
    return above.sub_(own).mul_(_LOG_2).clamp_(min=0.0).squeeze(-1).to(law.dtype)


def _forward_kl(log_q: Tensor, log_p: Tensor, p: Tensor, q: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """:func:`~kdkit.losses._kernels.forward_kl` from logarithms to base 2 that no law is taken from yet."""
    above_p, above_q = normalise_into(log_p, p), normalise_into(log_q, q)
    gap = (above_p - above_q).to(p.dtype)
    log_p.sub_(log_q).sub_(gap).mul_(p)
    values = log_p.nan_to_num_(0.0, torch.inf, -torch.inf).sum(dim=-1).mul_(_LOG_2)
    values.add_((above_p + above_q).squeeze(-1).to(p.dtype), alpha=0.0)
    return values, q.sub_(p) if learning else q
