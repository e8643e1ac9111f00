"""Value and gradient of a divergence from one pass over the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kdkit.losses._kernels import Kernel, Laws, form_of
from kdkit.losses._ops import log_probs, reduce
from kdkit.losses._rowwise import EvaluateRows, Side, Temperatures, by_blocks, wide

__all__ = ["DivergenceOf", "Rows", "normalise_into", "scale_into"]

Rows = Callable[[Tensor, Tensor], Tensor]
"""``rows(log_p, log_q)``: values ``[...]`` from the log-probabilities ``[..., C]`` of teacher and student.

Differentiable in ``log_q``; entries may be -inf. Each row is a function of its own row alone."""

_LOG_2 = math.log(2)
_SMALL = 2**16
"""Entries up to which the number of operations costs more than the operations."""


@dataclass(slots=True)
class DivergenceOf:
    """A divergence with its options, checked, as a :class:`~kdkit.losses._rowwise.Computation`."""

    name: str
    rows: Rows
    kernel: Kernel | None
    temperatures: Temperatures
    mask: Tensor | None
    reduction: str
    squared: bool

    def plain(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The formula."""
        log_q = log_probs(student, self.temperatures[0], self.mask)
        log_p = log_probs(teacher, self.temperatures[1], self.mask)
        values = self.rows(log_p, log_q)
        return reduce(
            values * self.temperatures[0] ** 2 if self.squared else values, self.mask, self.reduction, self.name
        )

    def compute(self, student: Tensor, teacher: Tensor, learning: bool) -> tuple[Tensor, Tensor | None]:
        """By the kernel, or by differentiating the formula on each block; on CUDA by Triton where it can."""
        form = form_of(self.kernel)
        if form is not None and student.is_cuda and not any(isinstance(each, Tensor) for each in self.temperatures):
            from kdkit.kernels._choice import triton_may_run

            if triton_may_run(student.device.type):
                from kdkit.kernels._triton_dense import dense

                return dense(self, form, student, teacher, learning)
        if self.kernel is not None and self.mask is None and student.is_cpu and student.numel() <= _SMALL:
            result = _at_once(self, self.kernel, student, teacher, learning)
            if result is not None:
                return result

        def evaluator(student: Side, teacher: Side, scratch: Tensor) -> EvaluateRows:
            if self.kernel is None:
                return _by_formula(self, self.rows, student, teacher, learning, scratch)
            return _by_kernel(self, self.kernel, student, teacher, learning, scratch)

        rooms = 2 if self.kernel is None else 5
        return by_blocks(self, student, teacher, evaluator, rooms, self.name, self.reduction, learning)


# ---- small ---------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def _number(value: float) -> Tensor:
    """A number as a tensor, which is what torch would make of it at each use; it changes no dtype."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64, device="cpu")


def _exp(log: Tensor) -> Tensor:
    """``log.exp()``; the exponential to base 2 is three times as fast on a CPU."""
    return torch.mul(log, _number(1 / _LOG_2)).exp2_()


def _at_once(
    task: DivergenceOf, kernel: Kernel, student: Tensor, teacher: Tensor, learning: bool
) -> tuple[Tensor, Tensor | None] | None:
    """Everything in one block and as few operations as it takes; ``None`` where a value is not finite."""
    scale, cool = task.temperatures
    if isinstance(scale, Tensor) or isinstance(cool, Tensor):
        return None
    dtype = student.dtype
    if dtype != teacher.dtype or dtype.itemsize < 4:
        dtype = wide(task.temperatures, student, teacher)
        student, teacher = student.to(dtype), teacher.to(dtype)
    log_p = torch.log_softmax(teacher if cool == 1.0 else teacher * _number(1 / cool), -1)
    log_q = torch.log_softmax(student if scale == 1.0 else student * _number(1 / scale), -1)
    laws = Laws(log_p, _exp(log_p), log_q, _exp(log_q), None, None, 1.0, learning, None)
    values, unit, slope, factor = kernel(laws)
    total = values.sum()
    if not math.isfinite(total.item()):
        return None
    unit *= scale**2 if task.squared else 1.0
    factor *= scale if task.squared else 1 / scale
    if task.reduction == "mean":
        unit, factor = (each / max(values.numel(), 1) for each in (unit, factor))
    value = values.mul_(_number(unit)) if task.reduction == "none" else total.mul_(_number(unit))
    return value, slope.mul_(_number(factor)) if learning else None


# ---- blocks --------------------------------------------------------------------------------------------------------


def scale_into(rows: Tensor, temperature: float | Tensor, log: Tensor) -> None:
    """``rows / T`` to base 2 with the maximum brought to 0 into ``log``, which ``rows`` may be."""
    if isinstance(temperature, Tensor):
        torch.sub(rows, rows.amax(dim=-1, keepdim=True), out=log)
        log.mul_(temperature.mul(_LOG_2).reciprocal_())
    else:
        factor = 1 / (_LOG_2 * temperature)
        torch.add(rows.amax(dim=-1, keepdim=True).mul_(-factor), rows, alpha=factor, out=log)


def normalise_into(log: Tensor, law: Tensor) -> Tensor:
    """The law of these logarithms to base 2, into ``law``, which ``log`` may be.

    Returns by how much they are too large, float64 ``[..., 1]``; NaN for rows that have no law.
    """
    torch.exp2(log, out=law)
    total = law.sum(dim=-1, keepdim=True)
    law.mul_(total.reciprocal())
    return total.double().log2_()


def _by_kernel(
    task: DivergenceOf, kernel: Kernel, student: Side, teacher: Side, learning: bool, scratch: Tensor
) -> EvaluateRows:
    """The kernel on the laws of a block."""

    def evaluate(start: int, stop: int) -> tuple[Tensor, Tensor, float | Tensor]:
        rooms, scale = scratch[:, : stop - start], student.cool(start, stop)
        logs, laws, (log_p, log_q, p, q, spare) = rooms[:2], rooms[2:4], rooms.unbind()
        scale_into(teacher.rows(start, stop, log_p), teacher.cool(start, stop), log_p)
        scale_into(student.rows(start, stop, log_q), scale, log_q)
        # one by one: equal logits must have equal laws to the last bit, wherever in memory they stand
        above = torch.stack([normalise_into(log, law) for log, law in zip(logs, laws, strict=True)])
        shift = above[1].floor()
        logs.sub_((above - shift).to(logs.dtype))
        lift, lost = shift.exp2_().to(logs.dtype), above.sum(dim=0).squeeze(-1).to(logs.dtype)
        values, unit, slope, factor = kernel(Laws(log_p, p, log_q, q, lift, spare, _LOG_2, learning, lost))
        return _squared(task, values.mul_(unit), scale), slope, factor * (scale if task.squared else 1 / scale)

    return evaluate


def _squared(task: DivergenceOf, values: Tensor, scale: float | Tensor) -> Tensor:
    if not task.squared:
        return values
    return values * (scale.squeeze(-1) if isinstance(scale, Tensor) else scale) ** 2


def _divided(rows: Tensor, temperature: float | Tensor) -> Tensor:
    return rows / temperature if isinstance(temperature, Tensor) or temperature != 1.0 else rows


def _by_formula(
    task: DivergenceOf, rows: Rows, student: Side, teacher: Side, learning: bool, scratch: Tensor
) -> EvaluateRows:
    """The formula on the laws of a block, with torch's derivative."""

    def evaluate(start: int, stop: int) -> tuple[Tensor, Tensor, float | Tensor]:
        room, scale = scratch[:, : stop - start], student.cool(start, stop)
        log_p = torch.log_softmax(_divided(teacher.rows(start, stop, room[0]), teacher.cool(start, stop)), dim=-1)
        logits = _divided(student.rows(start, stop, room[1]), scale).detach()
        if not learning:
            return _squared(task, rows(log_p, torch.log_softmax(logits, dim=-1)), scale), logits, 1.0
        with torch.enable_grad():
            values = rows(log_p, torch.log_softmax(logits.requires_grad_(), dim=-1))
            total = values.sum()
        slope = torch.autograd.grad(total, logits)[0] if total.requires_grad else torch.zeros_like(logits)
        return _squared(task, values.detach(), scale), slope, scale if task.squared else 1 / scale

    return evaluate
