"""Inputs with published or derived values: three token positions over five classes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Golden:
    """float64 logits ``[3, 5]`` and the next token of each position."""

    student: Tensor
    teacher: Tensor
    labels: Tensor


@pytest.fixture
def golden() -> Golden:
    student = torch.tensor([[1, 2, 3, 4, 0], [0.5, -1, 2, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.float64)
    teacher = torch.tensor([[2, 1, 0.5, 3, -1], [1, 0, -1, 2, 0.5], [4, 0, -4, 1, 2]], dtype=torch.float64)
    return Golden(student, teacher, torch.tensor([3, 0, 0]))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
