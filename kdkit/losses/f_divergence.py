"""f-divergences: any convex function of the ratio of the two laws, by name or as a callable."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_temperature
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._generators import Generator, check_generator, generator_rows

__all__ = ["FDivergenceLoss", "f_divergence_loss"]


def f_divergence_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    f: Generator = "kl",
    parameter: float | None = None,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Csiszár's f-divergence of the student's law from the teacher's.

    .. math:: \ell = \sum_c q_c\, f\!\left( \frac{p_c}{q_c} \right), \qquad
        p = \mathrm{softmax}(z_t / T), \; q = \mathrm{softmax}(z_s / T)

    :math:`f` is convex on the positive numbers with :math:`f(1) = 0`; the ratio :math:`u` is teacher by student. Zero
    at equality, not negative, no factor :math:`T^2`. A class that both ban (logit -inf) counts 0, one that the teacher
    bans :math:`q_c f(0)`, one that the student bans :math:`p_c \lim_{u \to \infty} f(u) / u`; either may be infinite.

    Names, with :math:`f(u)`:

    - ``kl``: :math:`u \log u`; ``reverse_kl``: :math:`-\log u`; ``jeffreys``: :math:`(u - 1) \log u`;
    - ``total_variation``: :math:`|u - 1| / 2`; ``hellinger``: :math:`(\sqrt u - 1)^2 / 2`; ``le_cam``:
      :math:`(u - 1)^2 / (u + 1)`; ``pearson``: :math:`(u - 1)^2`; ``neyman``: :math:`(u - 1)^2 / u`;
    - ``softened_kl``: :math:`(u + 1) \log \frac{u + 1}{2}`; ``softened_reverse_kl``:
      :math:`(u + 1) \log \frac{u + 1}{2 u}`;
    - with a parameter: ``alpha`` (0.5): :math:`\frac{u^a - a u - 1 + a}{a (a - 1)}`; ``js`` (0.5):
      :math:`b u \log u - m \log m`, :math:`m = b u + 1 - b`; ``skew_kl`` (0.1):
      :math:`u \log \frac{u}{a u + 1 - a}`; ``skew_reverse_kl`` (0.1): :math:`-\log (a + (1 - a) u)`.

    They give the values of the losses of the same name, computed in log-space. A callable is evaluated in float64 at
    ratios within :math:`e^{\pm 200}`; beyond, it counts as linear towards infinity and as constant towards 0, where
    its limits are not infinite.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        f: a name from above, or a callable that maps a tensor of ratios to their values elementwise. It is checked to
            be 0 at 1 and convex. In a recipe: ``{_target_: package.function, _partial_: true}``.
        parameter: of ``alpha``, ``js`` (in (0, 1)), ``skew_kl`` or ``skew_reverse_kl`` (in [0, 1)); ``None`` is the
            default in brackets.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Csiszár 1967; Ali & Silvey 1966. For distillation: Wen et al. 2023 (f-DISTILL), arXiv:2307.15190. Texts that
        write the ratio as student by teacher list :math:`u f(1/u)` for what is :math:`f(u)` here.
    """
    check_generator("f_divergence_loss", f, parameter)
    rows = generator_rows(f, parameter)
    tensors = student_logits, teacher_logits
    return divergence("f_divergence_loss", rows, *tensors, temperature, mask, reduction)


class FDivergenceLoss(LogitLoss):
    """f-divergence at a temperature, with a generator by name or as a callable of the ratio; no factor T².

    Args:
        f: name of a generator, or a callable that maps ratios teacher / student to values, convex with f(1) = 0.
        parameter: of the generators "alpha", "js", "skew_kl" and "skew_reverse_kl".
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Csiszár 1967; Wen et al. 2023 (f-DISTILL), arXiv:2307.15190"

    def __init__(
        self,
        f: Generator = "kl",
        parameter: float | None = None,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_generator("FDivergenceLoss", f, parameter)
        self.f, self.parameter = f, parameter
        self.temperature = check_temperature("FDivergenceLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return f_divergence_loss(*tensors, **self.options("f", "parameter", "temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("f", "parameter", "temperature")
        if not isinstance(own["f"], str):
            return None
        option = {} if own["parameter"] is None else {"beta" if own["f"] == "js" else "alpha": own["parameter"]}
        return HeadTerm.divergence(own["f"], own["temperature"], **option)
