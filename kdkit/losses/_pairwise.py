"""Costs between all rows of the student and all rows of the teacher: in blocks that fit a cache, or compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._blocks import scratch
from kdkit.losses._ops import once

__all__ = ["IMPLEMENTATIONS", "cost_between", "cost_slope", "pairwise_cost"]

IMPLEMENTATIONS = ("auto", "tiles", "compiled")
"""How powers other than 2, which are matrix products, are computed; "auto" is "tiles"."""

_BLOCK = {"cpu": 2**20, "cuda": 2**26}
"""Entries of ``[rows, columns, C]`` that are held at once."""


def _tiles(
    student: Tensor, teacher: Tensor, pairs: Tensor, result: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]]:
    """In tiles: the student's rows ``[n, 1, C]``, the teacher's ``[m, C]``, ``pairs[n, m]``, the student's rows of
    ``result``, room for all pairs ``[n, m, C]``, and whether these rows of the student come for the first time."""
    (count, width), other = student.shape, teacher.shape[0]
    most = _BLOCK.get(student.device.type, 2**20)
    columns = min(other, max(1, most // max(1, width)))
    rows = min(count, max(1, most // max(1, columns * width)))
    # views made at once, not one by one: these cost as much as small tiles do
    sides = student.unsqueeze(1).split(rows), result.split(rows)
    with scratch((rows, columns, width), student.dtype, student.device) as every:
        for start, there in zip(range(0, other, columns), pairs.split(columns, dim=1), strict=True):
            right = teacher[start : start + columns]
            for left, into, part in zip(*sides, there.split(rows), strict=True):
                room = every if part.shape == every.shape[:2] else every[: len(part), : len(right)]
                yield left, right, part, into, room, start == 0


@functools.cache
def _compiled(power: float) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Cost and slope as one loop each, without room for the pairs; compiled at the first call."""

    def cost(student: Tensor, teacher: Tensor) -> Tensor:
        gap = (student.unsqueeze(1) - teacher).abs()
        return (gap if power == 1 else gap.pow(power)).sum(dim=-1)

    def slope(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        gap = student.unsqueeze(1) - teacher
        each = gap.sign() if power == 1 else gap.sign() * gap.abs().pow(power - 1) * power
        return (weight.unsqueeze(-1) * each).sum(dim=1)

    return torch.compile(cost, dynamic=True), torch.compile(slope, dynamic=True)


@torch.no_grad()
def cost_between(student: Tensor, teacher: Tensor, power: float, implementation: str = "auto") -> Tensor:
    r"""``C_ij = sum_c |student_ic - teacher_jc| ** power``, ``[N, M]``, for rows that are laws.

    For ``power=1`` by ``sum |s - t| = sum s + sum t - 2 sum min(s, t)``, which takes two passes over the pairs; for
    ``power=2`` by one float64 matrix product, which leaves float32 exact. Equal rows cost exactly 0, and so do laws
    that differ by less than the rounding of their sum.
    """
    if power == 2:
        with torch.autocast(student.device.type, enabled=False):
            left, right = student.double(), teacher.double()
            whole = left.square().sum(dim=-1).unsqueeze(1) + right.square().sum(dim=-1)
            cost = torch.addmm(whole, left, right.T, alpha=-2)
        return torch.threshold_(cost, 8 * torch.finfo(cost.dtype).eps, 0.0).to(student.dtype)
    if implementation == "compiled":
        return _compiled(power)[0](student, teacher)
    cost = student.new_empty(student.shape[0], teacher.shape[0])
    for rows, columns, part, _, room, _ in _tiles(student, teacher, cost, cost):
        if power == 1:
            torch.minimum(rows, columns, out=room)
        else:
            torch.sub(rows, columns, out=room).abs_().pow_(power)
        torch.sum(room, dim=-1, out=part)
    if power != 1:
        return cost
    whole = student.sum(dim=-1).unsqueeze(1) + teacher.sum(dim=-1)
    return torch.threshold_(whole.sub_(cost, alpha=2), 8 * torch.finfo(cost.dtype).eps, 0.0)


@torch.no_grad()
def cost_slope(
    student: Tensor, teacher: Tensor, cost: Tensor, weight: Tensor, power: float, implementation: str = "auto"
) -> Tensor:
    """``sum_j weight_ij * d C_ij / d student_i``, ``[N, C]``, for the ``cost`` of :func:`cost_between`.

    Pairs that cost 0 have no slope. Where single entries of unequal rows agree, any slope between -1 and 1 is a
    subgradient for ``power=1``, and -1 is taken, or 0 by "compiled".
    """
    with torch.autocast(student.device.type, enabled=False):
        if power == 2:
            wide = weight.double()
            slope = wide.sum(dim=1, keepdim=True) * student.double() - wide @ teacher.double()
            return slope.mul_(2).to(student.dtype)
        weight = weight * cost.sign()
        if implementation == "compiled":
            return _compiled(power)[1](student, teacher, weight)
        slope = torch.empty_like(student)
        for rows, columns, part, into, room, first in _tiles(student, teacher, weight, slope.unsqueeze(1)):
            if power == 1:
                factor = torch.gt(rows, columns, out=room)
            else:
                torch.sub(rows, columns, out=room)
                factor = room.sign().mul_(room.abs_().pow_(power - 1))
            torch.baddbmm(into, part.unsqueeze(1), factor, beta=0.0 if first else 1.0, out=into)
        return slope.mul_(2).sub_(weight.sum(dim=1, keepdim=True)) if power == 1 else slope.mul_(power)


class _PairwiseCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, power: float) -> Tensor:
        cost = cost_between(student, teacher, power)
        ctx.save_for_backward(student, teacher, cost)
        ctx.power = power
        return cost

    @staticmethod
    def backward(ctx: Any, grad_cost: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, cost = ctx.saved_tensors
        slope = cost_slope(student.detach(), teacher.detach(), cost.detach(), grad_cost.detach(), ctx.power)
        return once(slope, student, grad_cost), None, None


def pairwise_cost(student: Tensor, teacher: Tensor, power: float) -> Tensor:
    """:func:`cost_between`, differentiable once, in the student."""
    cost: Tensor = _PairwiseCost.apply(student, teacher, power)
    return cost
