"""Calibration bins and errors, beside torchmetrics and beside arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from kdkit.tasks._calibration import calibration_bins, calibration_error, equal_mass_bins


def test_equal_width_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(500, 7, generator=generator)).softmax(1)
    labels = torch.randint(0, 7, (500,), generator=generator)
    confidence, choice = probabilities.max(1)
    ours = calibration_error(calibration_bins(confidence.double(), (choice == labels).double()))
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=7, n_bins=15, norm="l1")
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_bins_are_open_below_and_closed_above() -> None:
    confidence = torch.tensor([0.0, 0.5, 0.5000001, 1.0], dtype=torch.float64)
    bins = calibration_bins(confidence, torch.tensor([0.0, 1.0, 1.0, 1.0]), bins=2)
    assert bins["count"] == [2, 2]
    assert bins["accuracy"] == [0.5, 1.0]
    assert bins["confidence"] == pytest.approx([0.25, 0.75000005])


def test_empty_bins_hold_zeros() -> None:
    bins = calibration_bins(torch.tensor([0.95]), torch.tensor([1.0]))
    assert bins["count"] == [0] * 14 + [1]
    assert bins["confidence"][:14] == [0.0] * 14
    assert calibration_error(bins) == pytest.approx(0.05, abs=1e-6)


def test_equal_mass_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.6, 0.8, 0.7])
    correct = torch.tensor([1.0, 0.0, 1.0, 1.0])
    bins = equal_mass_bins(confidence, correct, bins=2)
    assert bins["count"] == [2, 2]
    assert bins["confidence"] == pytest.approx([0.65, 0.85])
    assert bins["accuracy"] == [0.5, 1.0]
    assert calibration_error(bins) == pytest.approx(0.5 * 0.15 + 0.5 * 0.15, abs=1e-6)


@pytest.mark.parametrize("size", [1, 14, 15, 16, 100])
def test_equal_mass_bins_differ_by_one_at_most(size: int) -> None:
    counts = equal_mass_bins(torch.rand(size), torch.ones(size))["count"]
    assert sum(counts) == size
    assert max(counts) - min(counts) <= 1


def test_a_calibrated_classifier_has_no_error() -> None:
    confidence = torch.full((1000,), 0.75)
    correct = (torch.arange(1000) % 4 != 0).double()
    assert calibration_error(calibration_bins(confidence, correct)) == pytest.approx(0.0, abs=1e-6)
