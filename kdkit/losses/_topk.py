"""A divergence from the teacher's k best entries, and one from entries that were drawn at random."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdkit.losses._checks import (
    REDUCTIONS,
    Temperature,
    _check_float,
    _may_look,
    check_at_least,
    check_choice,
    check_mask,
    check_positive,
    refuse,
    temperatures,
)
from kdkit.losses._generators import check_generator, generator_rows
from kdkit.losses._rowwise import evaluate
from kdkit.losses._sparse import RESTS, SparseDivergence, entries_rows, sampled_rows

__all__ = ["TeacherSamples", "check_entries", "check_rest", "sample_teacher", "sampled_divergence", "topk_divergence"]


class TeacherSamples(NamedTuple):
    """Entries drawn from a teacher: ids int64, log-probabilities and importance weights, ``[..., n]`` each."""

    ids: Tensor
    log_probs: Tensor
    weights: Tensor


def check_entries(name: str, index: Tensor, values: Tensor, positions: torch.Size, size: int, repeated: bool) -> None:
    """Refuse entries that are no int64 ``[..., k]`` in range and values of another shape."""
    _check_float(name, "teacher_log_probs", values, 1, f"float of shape {[*positions, 'k']}")
    if values.shape[:-1] != positions:
        refuse(name, "teacher_log_probs", f"float of shape {[*positions, 'k']}", values)
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.shape != values.shape:
        refuse(name, "teacher_index", f"int64 of shape {list(values.shape)}", index, "pass index.long()")
    if not _may_look(index) or not index.numel():
        return
    low, high = (int(each) for each in index.aminmax())
    if low < 0 or high >= size:
        way_out = "compare the vocabularies of the networks"
        refuse(name, "teacher_index", f"in [0, {size})", low if low < 0 else high, way_out)
    if not repeated and bool((index.sort(dim=-1)[0].diff(dim=-1) == 0).any()):
        refuse(name, "teacher_index", "free of repetition in each row", index, "sum the probabilities of equal entries")


def check_rest(name: str, rest: str, f: str, log_probs: Tensor) -> None:
    """Refuse unknown treatments, and values that the chosen one cannot work with."""
    check_choice(name, "rest", rest, RESTS)
    if rest == "none" and f != "kl":
        refuse(name, "divergence", "'kl' with rest='none'", f, "a sum over some entries is no divergence of laws")
    if rest in ("bucket", "none") and _may_look(log_probs) and log_probs.numel():
        most = float(log_probs.double().exp().sum(dim=-1).max())
        if most > 1.01:
            way_out = "pass log-probabilities of the full softmax, or rest='renormalise'"
            refuse(name, "teacher_log_probs", "of probabilities that sum to at most 1 in each row", most, way_out)


def topk_divergence(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    teacher_index: Tensor,
    *,
    rest: str = "bucket",
    divergence: str = "kl",
    parameter: float | None = None,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""A divergence from the teacher's k best entries, with an explicit treatment of the others.

    .. math:: \ell = D(\hat p, \hat q), \qquad p_i = e^{\text{teacher\_log\_probs}_i}, \;
        q = \mathrm{softmax}(z_s / T)

    with the known entries :math:`K` and, by ``rest``,

    - "bucket": :math:`\hat p, \hat q` are laws on :math:`K` and one more class that holds what is left,
      :math:`1 - \sum_K p` and :math:`1 - \sum_K q`. At most the divergence of the full laws, and 0 where they agree;
    - "renormalise": both are renormalised on :math:`K`. Says nothing about the mass outside;
    - "teacher": :math:`\hat p` is renormalised on :math:`K` and has nothing elsewhere, :math:`\hat q = q`. Drives the
      student to put everything on :math:`K`;
    - "none": :math:`\sum_K p_i (\log p_i - \log q_i)` as it stands, which may be negative.

    For the first, second and last the student's remaining mass is summed by itself, so that it keeps its digits where
    the k entries hold nearly everything. Needs one exponential per entry, and no temporary of the size of the logits
    beyond the gradient.

    Args:
        student_logits: float ``[..., V]``.
        teacher_log_probs: float ``[..., k]``, of the law at the teacher's temperature; for "renormalise" and "teacher"
            up to a constant per row (logits will do). -inf counts as no entry.
        teacher_index: int64 ``[..., k]``, without repetition in a row.
        rest: what becomes of the other entries.
        divergence: as ``f`` of :func:`~kdkit.losses.f_divergence_loss`; "none" takes "kl".
        parameter: as there.
        temperature: of the student; the teacher's has entered its log-probabilities.
        mask: bool ``[...]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        The bucket is TRL's ``add_tail`` and DistillKit's ``SYMMETRIC_UNIFORM``, "teacher" DistillKit's ``ZERO``.
        DistillKit's bucket is NaN where the known mass rounds to 1 in float32; here it is summed in float64.
    """
    name = "topk_divergence"
    _check_float(name, "student_logits", student_logits, 1, "float of shape [B, C] or [B, T, V]")
    positions = student_logits.shape[:-1]
    check_mask(name, mask, positions)
    check_choice(name, "reduction", reduction, REDUCTIONS)
    check_generator(name, divergence, parameter)
    check_entries(name, teacher_index, teacher_log_probs, positions, student_logits.shape[-1], repeated=False)
    check_rest(name, rest, divergence, teacher_log_probs)
    entries = entries_rows(rest, generator_rows(divergence, parameter))
    both = temperatures(name, temperature, student_logits)
    task = SparseDivergence(name, entries, (both[0], 1.0), mask, reduction, teacher_index, False)
    return evaluate(task, student_logits, teacher_log_probs)


@torch.no_grad()
def sample_teacher(
    teacher_logits: Tensor,
    samples: int,
    *,
    temperature: float = 1.0,
    proposal_temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> TeacherSamples:
    r"""Draw entries of the teacher's law with importance weights, as :func:`sampled_divergence` takes them.

    .. math:: c_j \sim r, \quad r \propto p^{1 / \tau}, \quad w_j = \frac{p_{c_j}}{n\, r_{c_j}}, \qquad
        \mathbb{E} \sum_j w_j\, \phi(c_j) = \sum_c p_c\, \phi(c)

    Drawn with replacement. At :math:`\tau = 1` every weight is :math:`1 / n`.

    Args:
        teacher_logits: float ``[..., V]``.
        samples: how many per position, at least 1.
        temperature: of the teacher's law :math:`p`.
        proposal_temperature: :math:`\tau`; above 1 rare entries come more often.
        generator: of random numbers, on the device of the logits.

    Returns:
        :class:`TeacherSamples`, ``[..., samples]`` each.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.
    """
    name = "sample_teacher"
    _check_float(name, "teacher_logits", teacher_logits, 1, "float of shape [B, C] or [B, T, V]")
    check_at_least(name, "samples", samples, 1)
    check_positive(name, "temperature", temperature)
    check_positive(name, "proposal_temperature", proposal_temperature)
    flat = teacher_logits.reshape(-1, teacher_logits.shape[-1])
    parts: list[list[Tensor]] = [[], [], []]
    for rows in flat.split(max(2**22 // flat.shape[-1], 1)):
        wide = rows if rows.dtype == torch.float64 else rows.float()
        log_p = torch.log_softmax(wide / temperature, dim=-1)
        log_r = log_p if proposal_temperature == 1.0 else torch.log_softmax(log_p / proposal_temperature, dim=-1)
        index = torch.multinomial(log_r.exp(), samples, replacement=True, generator=generator)
        own = log_p.gather(-1, index)
        for part, value in zip(parts, (index, own, (own - log_r.gather(-1, index)).exp() / samples), strict=True):
            part.append(value)
    shape = (*teacher_logits.shape[:-1], samples)
    if not parts[0]:
        empty = flat.new_empty(shape, dtype=torch.float32)
        return TeacherSamples(empty.long(), empty, empty)
    return TeacherSamples(*(torch.cat(part).view(shape) for part in parts))


def sampled_divergence(
    student_logits: Tensor,
    samples: TeacherSamples,
    *,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""KL(teacher || student) estimated from entries that were drawn from the teacher, without bias.

    .. math:: \ell = \sum_j w_j (\log p_{c_j} - \log q_{c_j}), \qquad q = \mathrm{softmax}(z_s / T)

    Over the draws of :func:`sample_teacher` the expectation of the value is the forward KL of the full laws, and that
    of the gradient, :math:`q \sum_j w_j - \sum_j w_j e_{c_j}` per temperature, is its gradient: unlike the k best
    entries, which say nothing of the others. A single value may be negative.

    Args:
        student_logits: float ``[..., V]``.
        samples: from :func:`sample_teacher`, or any ids, log-probabilities and weights ``[..., n]``; an entry may
            occur more than once.
        temperature: of the student; the teacher's has entered its log-probabilities.
        mask: bool ``[...]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Anshumann et al. 2025 (random sampling knowledge distillation), arXiv:2503.16870. They report about 12 different
        entries per position to do as well as the full law.
    """
    name = "sampled_divergence"
    _check_float(name, "student_logits", student_logits, 1, "float of shape [B, C] or [B, T, V]")
    positions = student_logits.shape[:-1]
    check_mask(name, mask, positions)
    check_choice(name, "reduction", reduction, REDUCTIONS)
    check_samples(name, samples, positions, student_logits.shape[-1])
    both = temperatures(name, temperature, student_logits)
    known = torch.cat([samples.log_probs, samples.weights.to(samples.log_probs.dtype)], dim=-1)
    task = SparseDivergence(name, sampled_rows, (both[0], 1.0), mask, reduction, samples.ids, True)
    return evaluate(task, student_logits, known)


def check_samples(name: str, samples: TeacherSamples, positions: torch.Size, size: int) -> None:
    """Refuse what does not belong together."""
    if not isinstance(samples, tuple) or len(samples) != 3:
        refuse(name, "samples", "ids, log-probabilities and weights", samples, "call sample_teacher")
    index, log_probs, weights = samples
    check_entries(name, index, log_probs, positions, size, repeated=True)
    if not isinstance(weights, Tensor) or not weights.is_floating_point() or weights.shape != index.shape:
        refuse(name, "samples.weights", f"float of shape {list(index.shape)}", weights)
