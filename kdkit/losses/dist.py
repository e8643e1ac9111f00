"""DIST: correlations instead of divergences, among the classes of a sample and among the samples of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.losses._base import DistillationLoss
from kdkit.losses._blocks import scratch
from kdkit.losses._checks import check_at_least, check_logits, check_option, check_positive
from kdkit.losses._ops import clean, log_probs, soften
from kdkit.losses._rowwise import Temperatures, evaluate
from kdkit.outputs import StepOutputs

__all__ = ["DISTLoss", "dist_loss"]


@dataclass(slots=True)
class _Relation:
    """Pearson's correlation of each line of two matrices, and its gradient ``slope_b * b + slope_a * a`` with respect
    to the first one, ``a`` and ``b`` being the centred lines. 0 and without slopes where one of the two is constant."""

    correlation: Tensor
    slope_a: Tensor
    slope_b: Tensor


def _norms(matrix: Tensor, dim: int, room: Tensor) -> Tensor:
    """Of the lines along ``dim``; torch's own norm of columns is slow."""
    if dim == 1:
        return torch.linalg.vector_norm(matrix, dim=1)
    return torch.mul(matrix, matrix, out=room).sum(dim=0).sqrt()


def _constant(norms: Sequence[Tensor], means: Sequence[Any], number: float | Tensor) -> Tensor:
    """Which lines are constant on either side: what centring left of them is rounding."""
    rounding = [number**0.5 * 16 * torch.finfo(norms[0].dtype).eps * mean for mean in means]
    return (norms[0] <= rounding[0]) | (norms[1] <= rounding[1])


def _relate(
    a: Tensor, b: Tensor, room: Tensor, means: Sequence[Any], dim: int, number: float | Tensor, eps: float
) -> _Relation:
    """From centred matrices; ``means`` is what was taken off."""
    norms = [_norms(side, dim, room) for side in (a, b)]
    constant = _constant(norms, means, number)
    product = torch.mul(a, b, out=room).sum(dim=dim).masked_fill(constant, 0.0)
    weight = (~constant).to(a.dtype) / (norms[0] * norms[1] + eps)
    correlation = product * weight
    return _Relation(correlation, -correlation * weight * norms[1] / norms[0].masked_fill(constant, 1.0), weight)


def _correlations(a: Tensor, b: Tensor, means: Sequence[Any], dim: int, number: float | Tensor, eps: float) -> Tensor:
    """The correlations alone, which torch differentiates."""
    squares = [side.square().sum(dim=dim) for side in (a, b)]
    constant = _constant([square.detach().sqrt() for square in squares], means, number)
    norms = [square.masked_fill(constant, 1.0).sqrt() for square in squares]
    return (a * b).sum(dim=dim).masked_fill(constant, 0.0) / (norms[0] * norms[1] + eps)


@dataclass(slots=True)
class _DIST:
    """The loss with its options as a :class:`~kdkit.losses._rowwise.Computation`."""

    temperatures: Temperatures
    mask: Tensor | None
    beta: float
    gamma: float
    eps: float

    def _counts(self, q: Tensor) -> tuple[Tensor | None, Tensor]:
        """1 or 0 for each row, ``[N, 1]``, and their sum."""
        if self.mask is None:
            return None, q.new_full((), len(q))
        rows = self.mask.reshape(-1, 1).to(q.dtype)
        return rows, rows.sum()

    def _value(self, lines: Tensor, columns: Tensor, rows: Tensor | None, total: Tensor) -> Tensor:
        """From the correlations."""
        inter = 1 - lines if rows is None else (1 - lines) * rows.squeeze(1)
        value = self.beta * inter.sum() / total.clamp(min=1)
        return self.temperatures[0] ** 2 * (value + self.gamma * (1 - columns).mean() * total.clamp(max=1))

    def plain(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The formula."""
        laws = [log_probs(side, self.temperatures[0], self.mask).exp().flatten(0, -2) for side in (student, teacher)]
        laws[1] = laws[1].to(laws[0].dtype)
        (rows, total), classes = self._counts(laws[0]), student.shape[-1]
        share = 1 / classes
        lines = _correlations(laws[0] - share, laws[1] - share, (share, share), 1, classes, self.eps)
        number = total.clamp(min=1)
        means = [(law if rows is None else law * rows).sum(dim=0) / number for law in laws]
        centred = [(law - mean) * (1.0 if rows is None else rows) for law, mean in zip(laws, means, strict=True)]
        columns = _correlations(centred[0], centred[1], [mean.detach() for mean in means], 0, number, self.eps)
        return self._value(lines, columns, rows, total)

    def compute(self, student: Tensor, teacher: Tensor, learning: bool) -> tuple[Tensor, Tensor | None]:
        """In closed form; in place wherever it can be, as fresh memory is what costs here."""
        dtype = torch.promote_types(student.dtype, torch.float32)
        classes = student.shape[-1]
        with scratch((5, student.numel() // classes, classes), dtype, student.device) as room:
            laws = []
            for side, law in ((student, room[0]), (teacher, room[1])):
                softened = soften(clean(side, self.mask), self.temperatures[0]).reshape(law.shape)
                laws.append(torch.softmax(softened.to(dtype), dim=-1, out=law))
            value, gradient = self._closed_form(laws[0], laws[1], room[2], room[3], room[4], learning)
            return value, None if gradient is None else gradient.view(student.shape)

    def _closed_form(
        self, q: Tensor, p: Tensor, own: Tensor, other: Tensor, room: Tensor, learning: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The value, and its gradient with respect to the logits."""
        (rows, total), classes = self._counts(q), q.shape[1]
        number, share = total.clamp(min=1), 1 / classes
        sides = torch.sub(q, share, out=own), torch.sub(p, share, out=other)
        lines = _relate(*sides, room, (share, share), 1, classes, self.eps)
        means = []
        for side in sides:
            mean = (side if rows is None else side.mul_(rows)).sum(dim=0) / number
            side.sub_(mean)
            means.append(mean + share)
            if rows is not None:
                side.mul_(rows)
        columns = _relate(*sides, room, means, 0, number, self.eps)
        value = self._value(lines.correlation, columns.correlation, rows, total)
        if not learning:
            return value, None
        on_rows, on_columns = -self.temperatures[0] * self.beta / number, -self.temperatures[0] * self.gamma / classes
        slopes = torch.add(lines.slope_b.unsqueeze(1) * on_rows, columns.slope_b * on_columns, out=own).mul_(p)
        of_q = torch.add(lines.slope_a.unsqueeze(1) * on_rows, columns.slope_a * on_columns, out=other)
        slopes.addcmul_(of_q, q)
        # what rows are centred by cancels in the last step, where the gradient goes through the softmax
        slopes.sub_(on_columns * (columns.slope_b * means[1] + columns.slope_a * means[0])).mul_(q)
        gradient = torch.addcmul(slopes, q, slopes.sum(dim=1, keepdim=True), value=-1)
        return value, gradient if rows is None else gradient.mul_(rows)


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-8,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Relations between classes and between samples, by Pearson's correlation.

    .. math:: \ell = T^2 \left[ \beta \Big( 1 - \frac{1}{N} \sum_i \rho(q_{i\cdot}, p_{i\cdot}) \Big)
        + \gamma \Big( 1 - \frac{1}{C} \sum_c \rho(q_{\cdot c}, p_{\cdot c}) \Big) \right], \qquad
        \rho(a, b) = \frac{\langle a - \bar a, b - \bar b \rangle}{\|a - \bar a\|\, \|b - \bar b\| + \epsilon}

    :math:`q, p` are the laws of student and teacher at temperature :math:`T`, one row for each of the :math:`N`
    positions that count: the first term (inter-class) correlates rows, the second (intra-class) columns, which relates
    the samples of a batch. A correlation asks for a linear relation, not for equality: laws at another temperature
    than the teacher's cost little. Between 0 and :math:`2 T^2 (\beta + \gamma)`; at student = teacher it is 0 up to
    :math:`\epsilon`, which weighs down classes that have next to no probability in the whole batch.

    A row or column that is constant on either side correlates with nothing: :math:`\rho = 0` without a gradient. So a
    single sample has an intra-class term of :math:`\gamma T^2` that teaches nothing, and small batches make it noisy.

    Args:
        student_logits: ``[B, C]``, or ``[B, T, V]``, whose positions are put into one batch.
        teacher_logits: the same shape; no gradient flows to it.
        temperature: positive number.
        beta: weight of the inter-class relation, at least 0.
        gamma: weight of the intra-class relation, at least 0.
        eps: added to the product of norms, positive.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.

    Returns:
        A 0-d tensor; 0 if no position counts. Under data parallelism each rank relates its own samples.

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Huang et al. 2022, arXiv:2205.10536; value as in the authors' code. There a constant row of the student (a
        classifier that starts at zero) has a gradient of size 1 / eps; here it has none.
    """
    check_logits("dist_loss", student_logits, teacher_logits, mask)
    check_positive("dist_loss", "temperature", temperature)
    check_at_least("dist_loss", "beta", beta, 0.0)
    check_at_least("dist_loss", "gamma", gamma, 0.0)
    check_positive("dist_loss", "eps", eps)
    task = _DIST((temperature, temperature), mask, beta, gamma, eps)
    return evaluate(task, student_logits, teacher_logits)


class DISTLoss(DistillationLoss):
    """DIST: Pearson correlations of the laws, per sample and per class, T² included; relates samples.

    Args:
        temperature: positive.
        beta: weight of the inter-class relation, at least 0.
        gamma: weight of the intra-class relation, at least 0.
        eps: added to the product of norms, positive.
    """

    reference = "Huang et al. 2022, arXiv:2205.10536 (DIST)"

    def __init__(self, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__()
        self.temperature = check_option("DISTLoss", "temperature", temperature, check_positive)
        self.beta = check_option("DISTLoss", "beta", beta, check_at_least, 0.0)
        self.gamma = check_option("DISTLoss", "gamma", gamma, check_at_least, 0.0)
        self.eps = check_positive("DISTLoss", "eps", eps)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """See :func:`dist_loss`."""
        return dist_loss(
            student_logits, teacher_logits, **self.options("temperature", "beta", "gamma", "eps"), mask=mask
        )

    def compute(self, out: StepOutputs) -> Tensor:
        """The value of one step, 0-d."""
        return self.forward(out.student.logits, self.teacher_of(out).logits, mask=out.mask)
