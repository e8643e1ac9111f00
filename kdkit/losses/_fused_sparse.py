"""Divergences from some entries of the teacher's law, fused with the student's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._checks import REDUCTIONS, check_at_least, check_choice, refuse
from kdkit.losses._fused_linear import FusedParts
from kdkit.losses._generators import check_generator, generator_rows
from kdkit.losses._heads import check_chunk, check_student, counted, network_of, scales_of, side_of
from kdkit.losses._sparse import entries_rows, sampled_rows
from kdkit.losses._topk import TeacherSamples, check_entries, check_rest, check_samples
from kdkit.outputs import IGNORE_INDEX

__all__ = ["fused_sampled_divergence", "fused_topk_divergence"]


def fused_topk_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_log_probs: Tensor,
    teacher_index: Tensor,
    labels: Tensor | None = None,
    *,
    rest: str = "bucket",
    divergence: str = "kl",
    parameter: float | None = None,
    **options: Any,
) -> Any:
    r""":func:`~kdkit.losses.topk_divergence` from the student's hidden states and head, without its logits.

    .. math:: \ell = w\, D(\hat p, \hat q) - c \log \mathrm{softmax}(z)_y, \qquad z = h W^\top + b

    With ``rest="renormalise"`` and no cross-entropy only the k logits of each row are computed, from rows of the head
    that are looked up; otherwise those of one chunk of rows at a time.

    Args:
        student_hidden: float ``[..., H]``.
        student_head: float ``[V, H]``.
        teacher_log_probs: ``[..., k]``, as :func:`~kdkit.losses.topk_divergence` takes them.
        teacher_index: int64 ``[..., k]``, likewise.
        labels: int64 ``[...]``, aligned with the rows; positions with ``ignore_index`` count as masked.
        rest: as there.
        divergence: as there.
        parameter: as there.
        options: ``temperature`` (1.0, of the student), ``weight`` (1.0) and ``ce_weight`` (0.0), ``student_bias``,
            ``softcap``, ``logit_scale``, ``ignore_index``, ``mask``, ``reduction``, ``chunk_size`` and ``parts`` as for
            :func:`~kdkit.losses.fused_linear_divergence`.

    Returns:
        A 0-d tensor, or one value per position for "none"; with ``parts`` three of them.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        See :func:`~kdkit.losses.topk_divergence`.
    """
    from kdkit.kernels._problem import Known

    name = "fused_topk_divergence"
    size = check_student(name, student_hidden, student_head)
    check_generator(name, divergence, parameter)
    check_entries(name, teacher_index, teacher_log_probs, student_hidden.shape[:-1], size, repeated=False)
    check_rest(name, rest, divergence, teacher_log_probs)
    entries = entries_rows(rest, generator_rows(divergence, parameter))
    values, index = (each.detach().reshape(-1, each.shape[-1]) for each in (teacher_log_probs, teacher_index))
    known = Known(entries, values, index, False, rest == "renormalise")
    return _solved(name, student_hidden, student_head, known, labels, **options)


def fused_sampled_divergence(
    student_hidden: Tensor, student_head: Tensor, samples: TeacherSamples, labels: Tensor | None = None, **options: Any
) -> Any:
    r""":func:`~kdkit.losses.sampled_divergence` from the student's hidden states and head, without its logits.

    .. math:: \ell = w \sum_j w_j (\log p_{c_j} - \log q_{c_j}) - c \log \mathrm{softmax}(z)_y, \qquad
        z = h W^\top + b

    The student's normaliser needs all of its logits, one chunk of rows at a time; the teacher's are not needed.

    Args:
        student_hidden: float ``[..., H]``.
        student_head: float ``[V, H]``.
        samples: ``[..., n]``, from :func:`~kdkit.losses.sample_teacher`.
        labels: int64 ``[...]``, aligned with the rows; positions with ``ignore_index`` count as masked.
        options: as for :func:`~kdkit.losses.fused_topk_divergence`.

    Returns:
        A 0-d tensor, or one value per position for "none"; with ``parts`` three of them.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        See :func:`~kdkit.losses.sampled_divergence`.
    """
    from kdkit.kernels._problem import Known

    name = "fused_sampled_divergence"
    size = check_student(name, student_hidden, student_head)
    check_samples(name, samples, student_hidden.shape[:-1], size)
    both = torch.cat([samples.log_probs, samples.weights.to(samples.log_probs.dtype)], dim=-1).detach()
    values, index = (each.reshape(-1, each.shape[-1]) for each in (both, samples.ids))
    return _solved(
        name, student_hidden, student_head, Known(sampled_rows, values, index, True, False), labels, **options
    )


def _solved(
    name: str,
    hidden: Tensor,
    head: Tensor,
    known: Any,
    labels: Tensor | None,
    *,
    temperature: float = 1.0,
    weight: float = 1.0,
    ce_weight: float = 0.0,
    student_bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    reduction: str = "mean",
    chunk_size: int | str = "auto",
    implementation: str = "auto",
    parts: bool = False,
) -> Any:
    """What both functions share: the options, checked, and the solver."""
    from kdkit.kernels._choice import solver_of
    from kdkit.kernels._problem import Problem, solve

    check_choice(name, "reduction", reduction, REDUCTIONS)
    weights = check_at_least(name, "weight", weight, 0.0), check_at_least(name, "ce_weight", ce_weight, 0.0)
    if labels is None and ce_weight > 0:
        refuse(name, "labels", "a tensor of labels", None, "cross-entropy needs them; or set ce_weight=0")
    kept = counted(name, hidden, labels, mask, len(head), ignore_index)
    sources = side_of(name, "student", hidden, head, student_bias, len(head))
    student = network_of(sources, scales_of(name, logit_scale, softcap, temperature)[0])
    rows = None if labels is None else labels.reshape(-1)
    problem = Problem(student, known, rows, kept, None, weights, check_chunk(name, chunk_size))
    results: Sequence[Tensor] = solve(problem, sources, solver_of(name, implementation, problem), reduction)
    if reduction == "none":
        results = [each.view(hidden.shape[:-1]) for each in results]
    return FusedParts(*results) if parts else results[0]
