"""Hidden states and vocabulary projections of two language models: checks, and what counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdkit.losses._checks import _check_float, _pair, check_at_least, check_labels, check_mask, check_positive, refuse

if TYPE_CHECKING:
    from kdkit.kernels._problem import Network

__all__ = [
    "Cap",
    "Pair",
    "Sources",
    "check_chunk",
    "check_networks",
    "check_student",
    "counted",
    "network_of",
    "scales_of",
    "side_of",
]

Pair = float | tuple[float, float]
"""One number for both networks, or a pair (student, teacher)."""

Cap = float | None | tuple[float | None, float | None]
"""The same, ``None`` for no cap."""

Sources = tuple[Tensor, Tensor, Tensor | None]
"""Hidden states ``[N, H]``, head ``[V, H]`` and bias ``[V]``."""


def _check_network(name: str, side: str, hidden: Tensor, head: Tensor, student_hidden: Tensor) -> None:
    _check_float(name, f"{side}_hidden", hidden, 1, "float of shape [B, H] or [B, T, H]")
    _check_float(name, f"{side}_head", head, 1, "float of shape [V, H]")
    if head.ndim != 2 or head.shape[1] != hidden.shape[-1] or not len(head):
        rule = f"float of shape [V, {hidden.shape[-1]}], the width of {side}_hidden"
        refuse(name, f"{side}_head", rule, head, "pass the weight of the layer that reads these states")
    if hidden.device != student_hidden.device or head.device != student_hidden.device:
        refuse(name, f"{side}_head", f"on {student_hidden.device} like student_hidden", str(head.device))


def check_student(name: str, hidden: Tensor, head: Tensor) -> int:
    """The number of entries of the student's head; refuses tensors that do not belong together."""
    _check_network(name, "student", hidden, head, hidden)
    return len(head)


def check_networks(
    name: str,
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    vocabulary: Any,
) -> int:
    """How many entries of the vocabulary take part; refuses tensors that do not belong together."""
    _check_network(name, "student", student_hidden, student_head, student_hidden)
    _check_network(name, "teacher", teacher_hidden, teacher_head, student_hidden)
    if teacher_hidden.shape[:-1] != student_hidden.shape[:-1]:
        rule = f"of the positions of student_hidden, {list(student_hidden.shape[:-1])}"
        refuse(name, "teacher_hidden", rule, teacher_hidden, "both networks need the same tokens")
    smaller = min(len(student_head), len(teacher_head))
    if vocabulary == "shared":
        return smaller
    if vocabulary == "same":
        if len(student_head) != len(teacher_head):
            way_out = 'vocabulary="shared" keeps the entries that both have'
            refuse(name, "teacher_head", f"of {len(student_head)} entries, as student_head", teacher_head, way_out)
        return smaller
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 <= vocabulary <= smaller:
        refuse(name, "vocabulary", f"'same', 'shared' or an integer in [1, {smaller}]", vocabulary)
    return vocabulary


def counted(
    name: str, hidden: Tensor, labels: Tensor | None, mask: Tensor | None, size: int, ignore_index: int
) -> Tensor:
    """Indices of the positions that count, in flat order; on an accelerator the host waits for their number."""
    positions = hidden.shape[:-1]
    check_mask(name, mask, positions)
    keep = mask
    if labels is not None:
        if isinstance(labels, Tensor) and labels.is_floating_point():
            refuse(name, "labels", f"int64 of shape {list(positions)}", labels)
        check_labels(name, labels, positions, size, ignore_index)
        valid = labels != ignore_index
        keep = valid if mask is None else valid & mask
    if keep is None:
        return torch.arange(positions.numel(), device=hidden.device)
    return keep.reshape(-1).nonzero().squeeze(1)


def side_of(name: str, side: str, hidden: Tensor, head: Tensor, bias: Tensor | None, size: int) -> Sources:
    """Flat hidden states, and head and bias for the entries that take part."""
    if bias is not None and (
        not isinstance(bias, Tensor) or not bias.is_floating_point() or bias.shape != head.shape[:1]
    ):
        refuse(name, f"{side}_bias", f"float of shape [{len(head)}], one number per entry of {side}_head", bias)
    whole = size == len(head)
    part = None if bias is None else bias if whole else bias[:size]
    return hidden.reshape(-1, hidden.shape[-1]), head if whole else head[:size], part


def _both(name: str, argument: str, value: Any, check: Callable[[str, str, Any], Any]) -> tuple[Any, Any]:
    if not _pair(value):
        return check(name, argument, value), value
    if len(value) != 2:
        refuse(name, argument, "one number, or a pair (student, teacher)", value)
    return check(name, argument, value[0]), check(name, argument, value[1])


def _check_cap(name: str, argument: str, value: Any) -> Any:
    return None if value is None else check_positive(name, argument, value)


def scales_of(name: str, logit_scale: Any, softcap: Any, temperature: Any) -> list[tuple[Any, ...]]:
    """``(scale, softcap, temperature)`` of the student and of the teacher."""
    return list(
        zip(
            _both(name, "logit_scale", logit_scale, check_positive),
            _both(name, "softcap", softcap, _check_cap),
            _both(name, "temperature", temperature, check_positive),
            strict=True,
        )
    )


def check_chunk(name: str, chunk_size: Any) -> int | None:
    """The number of rows that was asked for, ``None`` for "auto"."""
    return None if chunk_size == "auto" else check_at_least(name, "chunk_size", chunk_size, 1)


def network_of(sources: Sources, more: tuple[Any, ...]) -> Network:
    """The values of one side, outside of any graph."""
    from kdkit.kernels._problem import Network

    hidden, head, bias = sources
    return Network(hidden.detach(), head.detach(), None if bias is None else bias.detach(), *more)
