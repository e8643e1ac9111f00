"""Argument checks of the losses; every message reads ``<name>: <argument> must be <rule>, got <value>``.

Shapes, dtypes and options are checked always: that costs nothing. *Values* inside tensors (the range of labels, the
sign of a temperature) are checked on the CPU only and never while compiling: on an accelerator the look alone would
make the host wait for the device in every step. There an out-of-range label stops the indexing kernel itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from kdkit.errors import InputError, closest

__all__ = [
    "REDUCTIONS",
    "Temperature",
    "check_at_least",
    "check_between",
    "check_choice",
    "check_features",
    "check_labels",
    "check_logits",
    "check_mask",
    "check_positive",
    "check_temperature",
    "refuse",
]

Temperature = float | Tensor
"""A positive number, or a tensor: 0-d, or one temperature per position."""

REDUCTIONS = ("mean", "sum", "none")

Number = TypeVar("Number", int, float)
Choice = TypeVar("Choice", bound=str)


def _describe(value: object) -> str:
    """``float32 [8, 100]`` for a tensor, ``repr`` for anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return repr(value)


def refuse(name: str, argument: str, rule: str, got: object, way_out: str = "") -> NoReturn:
    """Raise the one error that a loss raises: which argument, what it must be, what it was, how to go on."""
    raise InputError(f"{name}: {argument} must be {rule}, got {_describe(got)}" + (f"; {way_out}" if way_out else ""))


def _may_look(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_number(name: str, argument: str, value: object, rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        refuse(name, argument, rule, value)


def check_positive(name: str, argument: str, value: Number) -> Number:
    """``value``, if it is a finite number above 0."""
    _check_number(name, argument, value, "a positive number")
    if value <= 0:
        refuse(name, argument, "a positive number", value)
    return value


def check_at_least(name: str, argument: str, value: Number, minimum: Number) -> Number:
    """``value``, if it is a finite number of at least ``minimum`` (an integer, if ``minimum`` is one)."""
    kind = "an integer" if isinstance(minimum, int) else "a number"
    rule = f"{kind} of at least {minimum}"
    _check_number(name, argument, value, rule)
    if value < minimum or (isinstance(minimum, int) and not isinstance(value, int)):
        refuse(name, argument, rule, value)
    return value


def check_between(name: str, argument: str, value: float, low: float, high: float, *, ends: str = "[]") -> float:
    """``value``, if it lies between ``low`` and ``high``; ``ends`` says which ends belong, as in ``"[)"``."""
    rule = f"a number in {ends[0]}{low}, {high}{ends[1]}"
    _check_number(name, argument, value, rule)
    above = value > low or (ends[0] == "[" and value == low)
    below = value < high or (ends[1] == "]" and value == high)
    if not (above and below):
        refuse(name, argument, rule, value)
    return value


def check_choice(name: str, argument: str, value: Choice, choices: Collection[str]) -> Choice:
    """``value``, if it is one of ``choices``."""
    if value not in choices:
        rule = "one of " + ", ".join(repr(choice) for choice in choices)
        near = closest(str(value), choices, 1)
        refuse(name, argument, rule, value, f"did you mean {near[0]!r}?" if near else "")
    return value


def check_temperature(name: str, temperature: Temperature, logits: Tensor | None = None) -> Temperature:
    """``temperature``, if positive; a tensor must be 0-d or have one entry per position of ``logits``."""
    if not isinstance(temperature, Tensor):
        return check_positive(name, "temperature", temperature)
    positions = None if logits is None else logits.shape[:-1]
    if not temperature.is_floating_point() or (temperature.ndim > 0 and positions not in (None, temperature.shape)):
        shape = "[]" if positions is None else f"[] or {list(positions)}"
        refuse(name, "temperature", f"a positive number or a float tensor of shape {shape}", temperature)
    if _may_look(temperature) and not bool((temperature > 0).all()):
        refuse(name, "temperature", "positive everywhere", float(temperature.min()))
    return temperature


def check_mask(name: str, mask: Tensor | None, positions: torch.Size) -> None:
    """A mask is ``None`` or bool with one entry per position."""
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != positions):
        refuse(name, "mask", f"bool of shape {list(positions)}", mask, "pass mask.bool(), true where a position counts")


def _check_float(name: str, argument: str, value: object, least: int, form: str) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2 or value.shape[-1] < least:
        refuse(name, argument, form, value)


def check_logits(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    least_classes: int = 1,
) -> None:
    """Floats ``[B, C]`` or ``[B, T, V]``, of one shape on both sides, and a mask that fits them."""
    form = "float of shape [B, C] or [B, T, V]" + (f" with at least {least_classes} classes" * (least_classes > 1))
    _check_float(name, "student_logits", student_logits, least_classes, form)
    if teacher_logits is not None:
        _check_float(name, "teacher_logits", teacher_logits, least_classes, form)
        if teacher_logits.shape != student_logits.shape:
            rule = f"of the shape of student_logits, {list(student_logits.shape)}"
            refuse(name, "teacher_logits", rule, teacher_logits, "both networks need the same classes and positions")
    check_mask(name, mask, student_logits.shape[:-1])


def check_features(name: str, student_features: Tensor, teacher_features: Tensor, mask: Tensor | None = None) -> None:
    """Floats ``[B, D]`` or ``[B, T, D]``, of one shape on both sides, and a mask that fits them."""
    form = "float of shape [B, D] or [B, T, D]"
    _check_float(name, "student_features", student_features, 1, form)
    _check_float(name, "teacher_features", teacher_features, 1, form)
    if teacher_features.shape != student_features.shape:
        rule = f"of the shape of student_features, {list(student_features.shape)}"
        refuse(name, "teacher_features", rule, teacher_features, "put a projector on the student's side of the pair")
    check_mask(name, mask, student_features.shape[:-1])


def check_labels(name: str, labels: Tensor, positions: torch.Size, num_classes: int, ignore_index: int) -> None:
    """int64 with one entry per position, in ``[0, num_classes)`` or ``ignore_index``; or floats, one per class."""
    soft = isinstance(labels, Tensor) and labels.is_floating_point()
    hard = isinstance(labels, Tensor) and labels.dtype == torch.int64
    shape = (*positions, num_classes) if soft else positions
    if not (soft or hard) or labels.shape != shape:
        rule = f"int64 of shape {list(positions)} or float of shape {[*positions, num_classes]}"
        refuse(name, "labels", rule, labels)
    if hard and _may_look(labels):
        wrong = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
        if bool(wrong.any()):
            rule = f"in [0, {num_classes}) or {ignore_index} for a position without a label"
            refuse(name, "labels", rule, int(labels[wrong][0]), "compare the data's classes with the network's")
