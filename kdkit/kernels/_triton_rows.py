"""Value and gradient of rows of logits in Triton: online softmax of both sides, gradient written in place.

A program takes a row. It reads both sides once for the normalisers (running maximum and sum), and once more for the
value and, where the sum of the derivatives is known beforehand, the gradient; otherwise a third time for that.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdkit.kernels._forms import KINDS

__all__ = ["launch"]

_MOST = 4096
"""Entries of a row at a time."""


@triton.jit
def _capped(raw, cap):
    """``cap tanh(raw / cap)`` and its derivative."""
    bounded = 2.0 * tl.sigmoid(2.0 * raw / cap) - 1.0
    return cap * bounded, 1.0 - bounded * bounded


@triton.jit
def _load(base, columns, entries, cap, CAPPED: tl.constexpr, WIDE: tl.constexpr):
    """Logits of a block, -inf behind the end, and the derivative of the cap."""
    raw = tl.load(base + columns, mask=columns < entries, other=0.0).to(WIDE)
    chain = tl.full(raw.shape, 1.0, WIDE)
    if CAPPED:
        raw, chain = _capped(raw, cap)
    return tl.where(columns < entries, raw, float("-inf")), chain


@triton.jit
def _fold(top, total, logits):
    """Running maximum and sum of exponentials with another block."""
    above = tl.maximum(top, tl.max(logits, axis=0))
    safe = tl.where(above == float("-inf"), 0.0, above)
    return above, total * tl.exp(top - safe) + tl.sum(tl.exp(logits - safe), axis=0)


@triton.jit
def _times(law, log):
    """Their product; 0 times infinity is 0."""
    return tl.where(law > 0, law * log, 0.0)


@triton.jit
def _terms(log_p, log_q, parameter, KIND: tl.constexpr):
    """Values and derivatives as in :func:`kdkit.kernels._forms.terms`."""
    p = tl.exp(log_p)
    q = tl.exp(log_q)
    if KIND == 0:
        value = _times(p, log_p - log_q)
        slope = -p
    elif KIND == 1:
        value = _times(q, log_q - log_p)
        slope = value + q
    elif KIND == 7:
        back = _times(q, log_q - log_p)
        value = _times(p, log_p - log_q) + back
        slope = back + q - p
    elif KIND == 5:
        value = tl.abs(p - q) / 2
        slope = tl.where(q > p, q, tl.where(q < p, -q, 0.0)) / 2
    elif KIND == 6:
        gap = tl.sqrt(p) - tl.sqrt(q)
        value = gap * gap / 2
        slope = (q - tl.sqrt(p) * tl.sqrt(q)) / 2
    else:
        share = parameter
        if KIND == 4:
            share = 1 - parameter
        mixture = tl.maximum(share * p + (1 - share) * q, 1e-38)
        log_m = tl.log(mixture)
        if KIND == 3:
            value = _times(p, log_p - log_m)
            slope = -(1 - share) * p * (q / mixture)
        else:
            ahead = _times(q, log_q - log_m)
            if KIND == 4:
                value = ahead
                slope = ahead + share * q * (p / mixture)
            else:
                value = share * _times(p, log_p - log_m) + (1 - share) * ahead
                slope = (1 - share) * ahead
    return value, slope


@triton.jit
def _normalisers(
    s_row,
    t_row,
    limit,
    warmth,
    cool,
    s_cap,
    t_cap,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    HAS_CE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Log-normalisers of student and teacher at their temperatures, and of the student at 1."""
    span = tl.arange(0, BLOCK)
    low = tl.full((), float("-inf"), WIDE)
    zero = tl.full((), 0.0, WIDE)
    s_top, t_top, h_top = low, low, low
    s_total, t_total, h_total = zero, zero, zero
    for start in range(0, limit, BLOCK):
        z, _ = _load(s_row, start + span, limit, s_cap, S_CAPPED, WIDE)
        y, _ = _load(t_row, start + span, limit, t_cap, T_CAPPED, WIDE)
        s_top, s_total = _fold(s_top, s_total, z * warmth)
        t_top, t_total = _fold(t_top, t_total, y * cool)
        if HAS_CE:
            h_top, h_total = _fold(h_top, h_total, z)
    return s_top + tl.log(s_total), t_top + tl.log(t_total), h_top + tl.log(h_total)


@triton.jit
def _sums(
    s_row,
    t_row,
    limit,
    warmth,
    cool,
    s_norm,
    t_norm,
    s_cap,
    t_cap,
    parameter,
    KIND: tl.constexpr,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of values and of derivatives of a row."""
    span = tl.arange(0, BLOCK)
    value = tl.full((), 0.0, WIDE)
    whole = tl.full((), 0.0, WIDE)
    for start in range(0, limit, BLOCK):
        z, _ = _load(s_row, start + span, limit, s_cap, S_CAPPED, WIDE)
        y, _ = _load(t_row, start + span, limit, t_cap, T_CAPPED, WIDE)
        v, w = _terms(y * cool - t_norm, z * warmth - s_norm, parameter, KIND)
        value += tl.sum(v, axis=0)
        whole += tl.sum(w, axis=0)
    return value, whole


@triton.jit
def _rows(
    student,
    teacher,
    out,
    labels,
    weights,
    values,
    ce_values,
    student_stride,
    teacher_stride,
    out_stride,
    entries,
    warmth,
    cool,
    s_cap,
    t_cap,
    share,
    ce_share,
    parameter,
    KIND: tl.constexpr,
    HAS_CE: tl.constexpr,
    S_CAPPED: tl.constexpr,
    T_CAPPED: tl.constexpr,
    LEARNING: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    s_row = student + row * student_stride
    t_row = teacher + row * teacher_stride
    o_row = out + row * out_stride
    weight = tl.load(weights + row).to(WIDE)
    limit = tl.where(weight != 0, entries, 0)  # a row that does not count may hold anything
    span = tl.arange(0, BLOCK)
    s_norm, t_norm, h_norm = _normalisers(
        s_row,
        t_row,
        limit,
        warmth,
        cool,
        s_cap,
        t_cap,
        S_CAPPED,
        T_CAPPED,
        HAS_CE,
        WIDE,
        BLOCK,
    )
    value = tl.full((), 0.0, WIDE)
    whole = tl.full((), -1.0, WIDE)
    label = tl.full((), -1, tl.int64)
    if HAS_CE:
        label = tl.load(labels + row)
        own, _ = _load(s_row, label + tl.arange(0, 1), entries, s_cap, S_CAPPED, WIDE)
        tl.store(ce_values + row, tl.where(weight != 0, h_norm - tl.sum(own, axis=0), 0.0))
    if KIND != 0:
        value, whole = _sums(
            s_row,
            t_row,
            limit,
            warmth,
            cool,
            s_norm,
            t_norm,
            s_cap,
            t_cap,
            parameter,
            KIND,
            S_CAPPED,
            T_CAPPED,
            WIDE,
            BLOCK,
        )
    if LEARNING or KIND == 0:
        for start in range(0, limit, BLOCK):
            columns = start + span
            z, chain = _load(s_row, columns, entries, s_cap, S_CAPPED, WIDE)
            y, _ = _load(t_row, columns, entries, t_cap, T_CAPPED, WIDE)
            log_q = z * warmth - s_norm
            v, w = _terms(y * cool - t_norm, log_q, parameter, KIND)
            if KIND == 0:
                value += tl.sum(v, axis=0)
            if LEARNING:
                slope = (w - tl.exp(log_q) * whole) * (share * warmth)
                if HAS_CE:
                    hit = tl.where(columns == label, 1.0, 0.0)
                    slope += (tl.exp(z - h_norm) - hit) * ce_share
                tl.store(o_row + columns, slope * chain * weight, mask=columns < entries)
    if LEARNING:
        for start in range(limit, entries, BLOCK):
            tl.store(o_row + start + span, tl.zeros((BLOCK,), WIDE), mask=start + span < entries)
    tl.store(values + row, value)


def launch(
    student: Tensor,
    teacher: Tensor,
    out: Tensor,
    weights: Tensor,
    values: Tensor,
    *,
    name: str,
    parameter: float = 0.0,
    temperatures: tuple[float, float] = (1.0, 1.0),
    caps: tuple[float | None, float | None] = (None, None),
    shares: tuple[float, float] = (1.0, 0.0),
    labels: Tensor | None = None,
    ce_values: Tensor | None = None,
    learning: bool = True,
) -> None:
    """Values of rows into ``values`` ``[n]`` (and ``ce_values``), and the gradient of
    ``sum_i weights_i (shares[0] D_i + shares[1] CE_i)`` with respect to the raw logits into ``out``, which may be
    ``student``: 0 where a weight is 0, as is the value there. Logits are ``[n, V]`` with entries next to one another;
    ``labels`` ``[n]`` must be in range."""
    if not len(student):
        return
    wide = tl.float64 if torch.float64 in (student.dtype, teacher.dtype) else tl.float32
    block = min(triton.next_power_of_2(student.shape[1]), _MOST)
    _rows[(len(student),)](
        student,
        teacher,
        out,
        values if labels is None else labels,
        weights,
        values,
        values if ce_values is None else ce_values,
        student.stride(0),
        teacher.stride(0),
        out.stride(0),
        student.shape[1],
        1 / temperatures[0],
        1 / temperatures[1],
        caps[0] or 1.0,
        caps[1] or 1.0,
        *shares,
        parameter,
        KIND=KINDS[name],
        HAS_CE=labels is not None,
        S_CAPPED=caps[0] is not None,
        T_CAPPED=caps[1] is not None,
        LEARNING=learning,
        WIDE=wide,
        BLOCK=block,
        num_warps=min(max(block // 256, 1), 16),
    )
