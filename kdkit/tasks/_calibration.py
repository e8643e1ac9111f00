"""Calibration of top-label confidences: bins and the error over them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Bins", "calibration_bins", "calibration_error", "equal_mass_bins"]

Bins = dict[str, list[float]]


def calibration_bins(confidence: Tensor, correct: Tensor, bins: int = 15) -> Bins:
    """Mean ``confidence``, mean ``accuracy`` and ``count`` in equally wide bins ``(lo, hi]`` of [0, 1].

    A confidence of exactly 1 falls into the last bin (Guo et al. 2017, arXiv:1706.04599, section 2). Empty bins
    hold zeros.

    Args:
        confidence: ``[N]`` in [0, 1].
        correct: ``[N]``, 1 where the choice was right and 0 elsewhere.
        bins: number of bins.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    return _collect(index, confidence, correct, bins)


def equal_mass_bins(confidence: Tensor, correct: Tensor, bins: int = 15) -> Bins:
    """The same over bins that hold equally many samples (they differ by one at most), in order of confidence.

    Nixon et al. 2019, arXiv:1904.01685, call the error over such bins adaptive, here for the top label only.
    """
    order = torch.argsort(confidence, stable=True)
    index = torch.empty_like(order)
    index[order] = torch.arange(len(order)) * bins // max(len(order), 1)
    return _collect(index, confidence, correct, bins)


def _collect(index: Tensor, confidence: Tensor, correct: Tensor, bins: int) -> Bins:
    count = torch.bincount(index, minlength=bins)
    sums = [torch.bincount(index, values.double(), minlength=bins) for values in (confidence, correct)]
    means = [(total / count.clamp(min=1)).tolist() for total in sums]
    return {"confidence": means[0], "accuracy": means[1], "count": count.tolist()}


def calibration_error(bins: Bins) -> float:
    """``sum_b count_b / N * |accuracy_b - confidence_b|``."""
    total = sum(bins["count"])
    gaps = zip(bins["count"], bins["accuracy"], bins["confidence"])
    return sum(count * abs(accuracy - confidence) for count, accuracy, confidence in gaps) / max(total, 1)
