"""The dense divergences on logits by the Triton kernel of the fused ones: no temporary but the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdkit.kernels._triton_rows import launch
from kdkit.losses._blocks import matrix
from kdkit.losses._kernels import Form
from kdkit.losses._ops import reduce

if TYPE_CHECKING:
    from kdkit.losses._one_pass import DivergenceOf

__all__ = ["dense"]


def _rows(logits: Tensor) -> Tensor:
    """``[N, C]`` with entries next to one another."""
    values, index = matrix(logits)
    values = values if index is None else values.index_select(0, index)
    return values if values.stride(1) == 1 else values.contiguous()


def dense(
    task: DivergenceOf, form: Form, student: Tensor, teacher: Tensor, learning: bool
) -> tuple[Tensor, Tensor | None]:
    """:meth:`~kdkit.losses._rowwise.Computation.compute` for temperatures that are numbers; the host waits for
    nothing."""
    own, other = _rows(student), _rows(teacher)
    wide = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    temperature, cool = (float(each) for each in task.temperatures)
    unit = form.scale * (temperature**2 if task.squared else 1.0)
    values = torch.empty(len(own), dtype=wide, device=own.device)
    if task.mask is None:
        weights = torch.ones_like(values)
        count: Tensor | int = max(len(own), 1)
    else:
        weights = task.mask.reshape(-1).to(wide)
        count = weights.sum().clamp(min=1)
    if task.reduction == "mean":
        weights = weights / count
    gradient = None
    if learning:
        dtype = torch.float32 if student.dtype == torch.float16 else student.dtype
        gradient = torch.empty(student.shape, dtype=dtype, device=student.device)
    out = own if gradient is None else gradient.view(-1, student.shape[-1])
    more = {"temperatures": (temperature, cool), "shares": (unit, 0.0), "learning": learning}
    launch(own, other, out, weights, values, name=form.name, parameter=form.parameter, **more)  # type: ignore[arg-type]
    return reduce((values * unit).view(student.shape[:-1]), task.mask, task.reduction, task.name), gradient
