"""Parameters, operations, time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit.models import count_flops, count_parameters, measure_latency


def test_parameters() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    module[0].requires_grad_(False)
    assert count_parameters(module) == 40 + 36
    assert count_parameters(module, trainable=True) == 36
    module.again = module[1]
    assert count_parameters(module) == 76


def test_flops_of_a_matrix_product() -> None:
    module = nn.Linear(4, 8, bias=False).train()
    assert count_flops(module, lambda: module(torch.randn(3, 4))) == 2 * 3 * 4 * 8
    assert module.training


def test_flops_of_a_network_on_inputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return self.linear(inputs["x"])

    assert count_flops(Named(), {"x": torch.randn(3, 4)}) == 2 * 3 * 4 * 8


def test_flops_that_can_not_be_counted() -> None:
    def fail() -> None:
        raise RuntimeError("no formula")

    assert count_flops(nn.Linear(1, 1), fail) is None


def test_latency_runs_as_often_as_it_says() -> None:
    calls: list[bool] = []
    module = nn.Linear(1, 1).train()
    value = measure_latency(module, lambda: calls.append(module.training), repeats=5, warmup=2)
    assert value > 0
    assert calls == [False] * 7
    assert module.training


def test_mode_is_restored_after_a_failure() -> None:
    def fail() -> None:
        raise ValueError("broken")

    module = nn.Linear(1, 1).train()
    with pytest.raises(ValueError, match=r"broken"):
        measure_latency(module, fail)
    assert module.training
