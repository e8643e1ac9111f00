"""Terms times weights: the only place where per-position values become one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from kdkit.balancing import Balancer
from kdkit.errors import ConfigError, did_you_mean
from kdkit.losses._base import DistillationLoss
from kdkit.losses._connectors import unused
from kdkit.losses._from_heads import head_term, reads_logits, shares
from kdkit.outputs import StepOutputs
from kdkit.schedules import Schedule, as_schedule

__all__ = ["Counts", "Objective"]

Counts = Mapping[str, float | Tensor]
"""Global number of ``positions`` and ``labelled`` positions of an optimizer step, and of ``groups`` where the teacher
has a tokenizer of its own."""


class Objective(nn.Module):
    r"""A weighted sum of losses, each divided once by the number of positions it counts.

    .. math:: L = \sum_k w_k(\text{progress}) \; \frac{1}{N_k} \sum_{i\ \text{counted by}\ k} \ell_k(i)

    :math:`N_k` is the global number of counted positions of an optimizer step, over ranks and accumulation steps:
    pass it as ``totals`` and the micro-batches of a step add up to exactly what one large batch would give.
    Losses that relate the samples of a batch return a mean :math:`m`; they enter as
    :math:`m \cdot n_\text{local} / N_k`.

    With weights per sample :math:`v_i` (``out.weights``) the mean becomes :math:`\sum_i v_i \ell_k(i) / \sum_i v_i`,
    over ranks and accumulation steps alike. Losses that relate samples have no values to weigh and stay as they are.

    Args:
        losses: name -> loss.
        weights: name -> number or schedule; exactly the names of ``losses``.
        balance: factors on top of the weights, see :class:`~kdkit.balancing.Balancer`.

    Raises:
        ConfigError: if the names differ.
    """

    def __init__(
        self,
        losses: Mapping[str, DistillationLoss],
        weights: Mapping[str, float | Schedule],
        balance: Balancer | None = None,
    ) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("an objective needs at least one loss; choose some with 'loss=[ce,kd]'")
        for name in weights:
            if name not in losses:
                raise ConfigError(f"weights.{name} has no loss of that name{did_you_mean(name, losses)}")
        missing = [name for name in losses if name not in weights]
        if missing:
            raise ConfigError(f"loss {missing[0]!r} has no weight; set weights.{missing[0]}=1.0")
        self.losses = nn.ModuleDict(losses)
        self.schedules = {name: as_schedule(weights[name]) for name in losses}
        self.balance = balance
        if balance is not None:
            balance.start(list(losses), [])

    def __iter__(self) -> Iterator[tuple[str, DistillationLoss]]:
        return iter(self.losses.items())  # type: ignore[arg-type]

    @property
    def pairs(self) -> set[str]:
        """Names of the feature pairs that any term reads."""
        return {pair for _, loss in self for pair in loss.pairs}

    @property
    def matched_pairs(self) -> set[str]:
        """Names of the pairs that some term wants in one shape on both sides."""
        return {pair for _, loss in self if loss.matched and loss.needs_teacher for pair in loss.pairs}

    def needs(self, what: Literal["teacher", "labels", "class_means", "index", "heads"]) -> list[str]:
        """Names of the terms that need it."""
        return [name for name, loss in self if getattr(loss, f"needs_{what}")]

    def weights(self, progress: float) -> dict[str, float]:
        """Value of each weight at this point of the training."""
        return {name: schedule(progress) for name, schedule in self.schedules.items()}

    @staticmethod
    def local_counts(out: StepOutputs) -> dict[str, Tensor]:
        """Number of ``positions`` and ``labelled`` positions of one micro-batch, or the sum of their weights."""
        counted = {"positions": out.positions(), "labelled": out.labelled()}
        counted |= {} if out.alignment is None else {"groups": out.groups()}
        return {kind: _total(where, out.weights) for kind, where in counted.items()}

    def forward(self, out: StepOutputs, totals: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and named terms.

        Args:
            out: one micro-batch.
            totals: global ``positions`` and ``labelled`` counts of the optimizer step; ``None`` takes this
                micro-batch as the whole step.

        Returns:
            ``(total, terms)``: a 0-d tensor to call ``backward`` on, and per loss its detached, unweighted share of
            the mean. Summed over the micro-batches and ranks of a step, a term is the mean over the step.
        """
        local = self.local_counts(out)
        counts = local if totals is None else totals
        # empty sums: exactly 0, and attached to the graph (projectors too) even where every weight is 0
        said = out.student.logits if out.student.head is None else out.student.head.hidden
        total = said[:0].sum(dtype=torch.float32)
        for feature in out.student.features.values():
            total = total + feature[:0].sum(dtype=torch.float32)
        for _, loss in self:
            loss.progress = out.progress
        kinds = {name: loss.counts if loss.counts in local else "positions" for name, loss in self}
        weights = self.weights(out.progress)
        if out.student.head is not None:
            return self._from_heads(out, total, counts, local, kinds)
        sums: dict[str, Tensor] = {}
        for name, loss in self:
            values = loss.compute(out)
            sums[name] = values * local[kinds[name]] if values.ndim == 0 else _weighted(values, out.weights).sum()
        terms = {name: value / _positive(counts[kinds[name]]) for name, value in sums.items()}
        factors = self._factors(sums, local, kinds, weights, out.progress)
        for name, term in terms.items():
            if weights[name] != 0.0:
                total = total + (weights[name] * term if factors is None else weights[name] * factors[name] * term)
            else:  # a module of its own gets a gradient of 0, which data parallelism waits for
                total = total + unused(self.losses[name])
        if self.balance is not None and (penalty := self.balance.penalty()) is not None:
            total = total + penalty * (local["positions"] / _positive(counts["positions"]))
        return total, {name: term.detach() for name, term in terms.items()}

    def without_logits(self) -> str | None:
        """Why the terms cannot be computed from hidden states and heads; ``None`` if they can."""
        if self.balance is not None:
            return "balance weighs terms by gradients of their own"
        named = [name for name, loss in self if head_term(loss) is None and reads_logits(loss)]
        return f"loss.{named[0]} reads logits" if named else None

    def _from_heads(
        self, out: StepOutputs, total: Tensor, totals: Counts, local: Counts, kinds: Mapping[str, str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from hidden states and heads: each term is divided before the pass over the vocabulary."""
        weights, found = self.weights(out.progress), {name: head_term(loss) for name, loss in self}
        counts = {name: _positive(totals[kind]) for name, kind in kinds.items()}
        terms: dict[str, Tensor] = {}
        fused = {name: term for name, term in found.items() if term is not None}
        shared = {name: weights[name] / float(counts[name]) for name in fused}
        for share in shares(out, fused, shared):
            total = total + _weighted(share.total, out.weights).sum()
            for name, values in share.values.items():
                terms[name] = _weighted(values, out.weights).sum().detach() / counts[name]
        for name, loss in self:
            if name in fused:
                continue
            values = loss.compute(out)
            one = values * local[kinds[name]] if values.ndim == 0 else _weighted(values, out.weights).sum()
            terms[name] = (one / counts[name]).detach()
            total = total + (weights[name] * one / counts[name] if weights[name] else unused(loss))
        return total, {name: terms[name] for name in found}

    def _factors(
        self,
        sums: Mapping[str, Tensor],
        local: Counts,
        kinds: Mapping[str, str],
        weights: Mapping[str, float],
        progress: float,
    ) -> dict[str, Tensor] | None:
        if self.balance is None:
            return None
        means = {name: weights[name] * value / _positive(local[kinds[name]]) for name, value in sums.items()}
        self.balance.observe(means, progress)
        return self.balance.factors()


def _total(counted: Tensor, weights: Tensor | None) -> Tensor:
    return counted.sum() if weights is None else _weighted(counted, weights).sum()


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """``values`` ``[B]`` or ``[B, T]`` times one weight per sample."""
    return values if weights is None else values * weights.view(-1, *[1] * (values.ndim - 1))


def _positive(count: float | Tensor) -> float | Tensor:
    """A divisor: the count itself, 1 in place of 0."""
    return torch.where(count > 0, count, 1) if isinstance(count, Tensor) else count if count > 0 else 1
