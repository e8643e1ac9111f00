"""Generalised Jensen-Shannon divergence: bounded, between forward and reverse KL."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from kdkit.losses._base import LogitLoss, Reduction
from kdkit.losses._checks import Temperature, check_between, check_temperature, refuse
from kdkit.losses._divergence import divergence
from kdkit.losses._from_heads import HeadTerm
from kdkit.losses._kernels import Kernel, forward_kl, jensen_shannon, reverse_kl
from kdkit.losses._ops import kl_rows, log_mixture

__all__ = ["JSLoss", "js_loss"]


def _check_beta(name: str, beta: float, rescaled: bool) -> float:
    check_between(name, "beta", beta, 0.0, 1.0)
    if beta in (0.0, 1.0) and not rescaled:
        way_out = "the divergence is 0 there; use kl_loss (0) or reverse_kl_loss (1), or rescaled=True"
        refuse(name, "beta", "strictly between 0 and 1", beta, way_out)
    return beta


def _js_rows(log_p: Tensor, log_q: Tensor, *, beta: float, rescaled: bool) -> Tensor:
    if beta == 0.0:
        return kl_rows(log_p, log_q)
    if beta == 1.0:
        return kl_rows(log_q, log_p)
    log_m = log_mixture(log_p, log_q, beta)
    rows = beta * kl_rows(log_p, log_m) + (1 - beta) * kl_rows(log_q, log_m)
    return rows / (beta * (1 - beta)) if rescaled else rows


def _kernel(beta: float, rescaled: bool) -> Kernel:
    ends = {0.0: forward_kl, 1.0: reverse_kl}
    return ends.get(beta) or jensen_shannon(beta, 1 / (beta * (1 - beta)) if rescaled else 1.0)


def js_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    rescaled: bool = False,
    temperature: Temperature = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence; ``beta`` is the teacher's weight in the mixture.

    .. math:: \ell = \beta\, \mathrm{KL}(p \| m) + (1 - \beta)\, \mathrm{KL}(q \| m), \qquad
        m = \beta p + (1 - \beta) q

    with :math:`p = \mathrm{softmax}(z_t / T)` and :math:`q = \mathrm{softmax}(z_s / T)`. Zero at equality, at most
    :math:`-\beta \log \beta - (1 - \beta) \log (1 - \beta)` (:math:`\log 2` at the symmetric ``beta=0.5``), no
    factor :math:`T^2`. Finite, with a finite gradient, for classes banned (logit -inf) on either side or on both.

    The divergence vanishes as ``beta`` approaches 0 or 1: there it behaves like :math:`\beta\, \mathrm{KL}(p \| q)`
    and :math:`(1 - \beta)\, \mathrm{KL}(q \| p)`. Both ends are refused, unless ``rescaled`` divides by
    :math:`\beta (1 - \beta)`: then the ends are exactly the forward and the reverse KL. TRL and Liger-Kernel return
    the forward KL at 0 and the reverse KL at 1 without rescaling between, so that their loss jumps by a factor of
    about 100 from ``beta=0`` to ``beta=0.01``; elsewhere they agree with this function.

    Args:
        student_logits: ``[B, C]`` or ``[B, T, V]``.
        teacher_logits: the same shape; no gradient flows to it.
        beta: weight of the teacher in the mixture, in (0, 1), or in [0, 1] if ``rescaled``.
        rescaled: divide by ``beta * (1 - beta)``. In float32 the quotient loses digits below ``beta`` of about 1e-4.
        temperature: positive; a number, a tensor that is 0-d or has one entry per position, or a pair (student,
            teacher) of these.
        mask: bool ``[B]`` or ``[B, T]``, true where a position counts.
        reduction: "mean" over the positions that count, "sum", or "none".

    Returns:
        A 0-d tensor, or one value per position for "none".

    Raises:
        InputError: for shapes, dtypes or options outside the rules above.

    Source:
        Agarwal et al. 2023 (GKD), arXiv:2306.13649, sec. 2; Lin 1991 for the symmetric case. DistiLLM's code leaves out
        classes that one side alone bans (logit -inf); here they count.
    """
    _check_beta("js_loss", beta, rescaled)
    rows, kernel = partial(_js_rows, beta=beta, rescaled=rescaled), _kernel(beta, rescaled)
    tensors = student_logits, teacher_logits
    return divergence("js_loss", rows, *tensors, temperature, mask, reduction, kernel=kernel)


class JSLoss(LogitLoss):
    """Generalised Jensen-Shannon divergence; beta = the teacher's weight in the mixture, bounded, no factor T².

    Args:
        beta: weight of the teacher in the mixture, in (0, 1), or in [0, 1] if ``rescaled``.
        rescaled: divide by ``beta * (1 - beta)``, which makes the ends the forward (0) and the reverse (1) KL.
        temperature: positive.
        reduction: what ``forward`` returns: "mean" over the positions that count, "sum", or "none".
    """

    reference = "Agarwal et al. 2023 (GKD), arXiv:2306.13649, sec. 2"

    def __init__(
        self,
        beta: float = 0.5,
        rescaled: bool = False,
        temperature: Temperature = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.beta = _check_beta("JSLoss", beta, rescaled)
        self.rescaled = rescaled
        self.temperature = check_temperature("JSLoss", temperature)

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        return js_loss(*tensors, **self.options("beta", "rescaled", "temperature", **options))

    def head_term(self) -> HeadTerm | None:
        own = self.options("temperature", "beta", "rescaled")
        beta, ends = own["beta"], {0.0: "kl", 1.0: "reverse_kl"}
        if beta in ends:
            return HeadTerm.divergence(ends[beta], own["temperature"])
        factor = 1 / (beta * (1 - beta)) if own["rescaled"] else 1.0
        return HeadTerm.divergence("js", own["temperature"], factor, beta=beta)
