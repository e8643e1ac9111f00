"""A divergence between two language models from their hidden states and heads, without the logits of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kdkit.losses._checks import REDUCTIONS, check_at_least, check_choice, refuse
from kdkit.losses._heads import Cap, Pair, check_chunk, check_networks, counted, network_of, scales_of, side_of
from kdkit.outputs import IGNORE_INDEX

__all__ = ["FusedParts", "fused_linear_divergence"]

_NAME = "fused_linear_divergence"


class FusedParts(NamedTuple):
    """What ``parts=True`` returns: ``total`` is differentiable, the others are cut from the graph and unweighted."""

    total: Tensor
    divergence: Tensor
    cross_entropy: Tensor


def fused_linear_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None = None,
    *,
    divergence: str = "kl",
    alpha: float | None = None,
    beta: float | None = None,
    temperature: Pair = 1.0,
    weight: float = 1.0,
    ce_weight: float = 0.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    softcap: Cap = None,
    logit_scale: Pair = 1.0,
    vocabulary: int | str = "same",
    ignore_index: int = IGNORE_INDEX,
    mask: Tensor | None = None,
    reduction: str = "mean",
    chunk_size: int | str = "auto",
    implementation: str = "auto",
    parts: bool = False,
) -> Any:
    r"""An f-divergence of the student's law from the teacher's plus cross-entropy, fused with both heads.

    .. math:: \ell = w\, D\big(\mathrm{softmax}(z_t / T), \mathrm{softmax}(z_s / T)\big)
        - c \log \mathrm{softmax}(z_s)_y, \qquad
        z = a \tanh\!\left( \frac{s\, (h W^\top + b)}{a} \right)

    with the divergence weight :math:`w`, ``ce_weight`` :math:`c`, ``softcap`` :math:`a` (without one
    :math:`z = s (h W^\top + b)`) and ``logit_scale`` :math:`s`. The value is that of
    :func:`~kdkit.losses.f_divergence_loss` on the logits, no factor :math:`T^2`; the cross-entropy is at temperature 1
    and shares the student's logits. Only the logits of one chunk of rows exist at a time, and the gradients of hidden
    states, head and bias come from the same pass: memory does not grow with the number of rows times the vocabulary.

    The gradients are computed in the forward pass. What is done in place to the inputs between forward and backward
    does not change them, unless the rows of ``reduction="none"`` get different upstream gradients or the graph is used
    again: these need a second pass, which refuses inputs that were changed. A second derivative raises.

    Products are taken in float32 for half-precision inputs (float64 if an input is), also under autocast, and the
    gradient of the head is summed in that type. No gradient flows to the teacher. Where the student bans an entry
    (bias -inf) that has mass, the value is that of the divergence, possibly +inf, and the gradient stays finite.

    Args:
        student_hidden: float ``[..., Hs]``: the states that the head reads.
        student_head: float ``[V, Hs]``: the weight of the head, which may be the embedding.
        teacher_hidden: float ``[..., Ht]``, the same positions.
        teacher_head: float ``[V, Ht]``.
        labels: int64 ``[...]``, **aligned with the rows**: the label of a row is the token that this row predicts
            (shift them before). Positions with ``ignore_index`` count as masked.
        divergence: "kl" (teacher || student), "reverse_kl", "js", "skew_kl", or any other name of
            :func:`~kdkit.losses.f_divergence_loss`.
        alpha: of "skew_kl", "skew_reverse_kl" (0.1) and "alpha" (0.5).
        beta: the teacher's weight in the mixture of "js" (0.5).
        temperature: positive, or a pair (student, teacher).
        weight: of the divergence, at least 0; 0 leaves it out.
        ce_weight: of the cross-entropy, at least 0; above 0 it needs ``labels``.
        student_bias: ``[V]``.
        teacher_bias: ``[V]``.
        softcap: soft cap of the logits (Gemma 2: 30), a number, ``None``, or a pair.
        logit_scale: factor of the logits (Cohere: 0.0625), or a pair.
        vocabulary: entries that exist on both sides. "same" refuses heads of different sizes; "shared" takes as many
            as the smaller head has, a number the first so many. All further entries are absent: their logits count as
            -inf on both sides, and the laws are those of the entries that are left.
        ignore_index: label of positions that do not count.
        mask: bool ``[...]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".
        chunk_size: rows of the student whose logits exist at a time; "auto" keeps everything beyond inputs and
            gradients within 64 MiB on a CPU.
        implementation: "chunked", "compiled", "triton", or "auto": Triton on CUDA where it knows the divergence, else
            chunked.
        parts: return :class:`FusedParts` with divergence and cross-entropy as well.

    Returns:
        A 0-d tensor, or one value per position for "none"; with ``parts`` three of them.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        The divergences are those of :func:`~kdkit.losses.f_divergence_loss`. The idea of taking the gradient of a head
        in the forward pass, chunk by chunk: Hsu et al. 2024 (Liger-Kernel), arXiv:2410.10989. Different from it: rows
        that do not count are dropped before any product, absent entries count as -inf instead of 0, and soft caps,
        scales and biases are part of the function.
    """
    from kdkit.kernels._choice import solver_of
    from kdkit.kernels._divergences import divergence_of
    from kdkit.kernels._problem import Problem, solve

    check_choice(_NAME, "reduction", reduction, REDUCTIONS)
    chosen = divergence_of(_NAME, divergence, alpha, beta)
    size = check_networks(_NAME, student_hidden, student_head, teacher_hidden, teacher_head, vocabulary)
    weights = check_at_least(_NAME, "weight", weight, 0.0), check_at_least(_NAME, "ce_weight", ce_weight, 0.0)
    if labels is None and weights[1] > 0:
        refuse(_NAME, "labels", "a tensor of labels", None, "cross-entropy needs them; or set ce_weight=0")
    kept = counted(_NAME, student_hidden, labels, mask, size, ignore_index)
    sources = side_of(_NAME, "student", student_hidden, student_head, student_bias, size)
    others = side_of(_NAME, "teacher", teacher_hidden, teacher_head, teacher_bias, size)
    more = scales_of(_NAME, logit_scale, softcap, temperature)
    chunk = check_chunk(_NAME, chunk_size)
    rows = None if labels is None else labels.reshape(-1)
    student, teacher = network_of(sources, more[0]), network_of(others, more[1])
    problem = Problem(student, teacher, rows, kept, chosen, weights, chunk)
    results: Sequence[Tensor] = solve(problem, sources, solver_of(_NAME, implementation, problem), reduction)
    if reduction == "none":
        results = [each.view(student_hidden.shape[:-1]) for each in results]
    return FusedParts(*results) if parts else results[0]
