"""Choosing samples by class: stratified hold-outs and balanced few-label subsets."""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.data._order import generator
from kdkit.errors import DataError, InputError
from kdkit.outputs import IGNORE_INDEX

__all__ = ["check_labels", "hold_out", "keep_labels"]


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Refuse labels outside ``[0, num_classes)`` other than -100 (unlabelled).

    Raises:
        DataError: naming the first bad value and its position.
    """
    bad = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= num_classes))
    if bad.any():
        position = int(bad.nonzero()[0])
        raise DataError(
            f"{where}: labels must lie in [0, {num_classes}) or be {IGNORE_INDEX} for unlabelled, "
            f"got {int(labels[position])} at position {position}"
        )


def _rank_in_class(labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random rank of each sample within its class, and the size of its class: two int64 ``[N]``."""
    shuffled = torch.randperm(len(labels), generator=random)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    within = torch.arange(len(labels)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank, size = torch.empty_like(within), torch.empty_like(within)
    rank[by_class] = within
    size[by_class] = torch.repeat_interleave(counts, counts)
    return rank, size


def hold_out(labels: Tensor, size: int, key: str) -> tuple[Tensor, Tensor]:
    """Positions ``(kept, held out)``, each ascending; the ``size`` held out have the class shares of all.

    Args:
        labels: int64 ``[N]``; -100 counts as a class of its own.
        size: number of samples to hold out, 0 to ``N - 1``.
        key: names the draw; the same key always gives the same choice.

    Raises:
        InputError: when ``size`` is out of range; the message starts with ``key``.
    """
    if not 0 <= size < len(labels):
        raise InputError(f"{key} must be between 0 and {len(labels) - 1}, got {size}")
    random = generator("hold out", key)
    rank, count = _rank_in_class(labels, random)
    # Halfway quantiles spread the choice over classes in proportion; the random order breaks ties.
    quantile = (rank.double() + 0.5) / count
    shuffled = torch.randperm(len(labels), generator=random)
    chosen = shuffled[torch.argsort(quantile[shuffled], stable=True)[:size]]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[chosen] = True
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]


def keep_labels(labels: Tensor, keep: int, num_classes: int, seed: int) -> Tensor:
    """A copy of ``labels`` in which all but ``keep`` are -100, as many of each class as possible.

    Args:
        labels: int64 ``[N]``; samples that are unlabelled already stay so.
        keep: 0 (distil without labels), or ``num_classes`` to the number of labelled samples.
        num_classes: number of classes.
        seed: which samples keep their label.

    Raises:
        InputError: when ``keep`` is out of range.
    """
    labelled = (labels != IGNORE_INDEX).nonzero()[:, 0]
    if keep != 0 and not num_classes <= keep <= len(labelled):
        raise InputError(
            f"labels must be 0, or between the number of classes {num_classes} and that of labelled training samples "
            f"{len(labelled)}, got {keep}; null keeps all labels"
        )
    random = generator("labels", seed)
    rank, _ = _rank_in_class(labels[labelled], random)
    turn = torch.randperm(num_classes, generator=random)[labels[labelled]]
    chosen = labelled[torch.argsort(rank * num_classes + turn)[:keep]]
    out = torch.full_like(labels, IGNORE_INDEX)
    out[chosen] = labels[chosen]
    return out
