"""CIFAR residual networks: the sizes of the literature."""

from __future__ import annotations

import pytest
import torch

from kdkit.errors import ConfigError
from kdkit.models import count_parameters
from kdkit.models.cifar import resnet

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


@pytest.mark.parametrize(
    ("depth", "widths", "parameters"),
    [
        (20, NARROW, 278_324),
        (32, NARROW, 472_756),
        (56, NARROW, 861_620),
        (110, NARROW, 1_736_564),
        (8, WIDE, 1_233_540),
        (32, WIDE, 7_433_860),
    ],
)
def test_parameters_on_cifar100(depth: int, widths: tuple[int, ...], parameters: int) -> None:
    assert count_parameters(resnet(depth, widths, num_classes=100)) == parameters


@pytest.mark.parametrize("size", [8, 28, 32])
def test_forward(size: int) -> None:
    network = resnet(14, num_classes=10, in_chans=1)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_stages_halve_the_side() -> None:
    network = resnet(8, num_classes=10)
    x = torch.relu(network.bn1(network.conv1(torch.randn(1, 3, 32, 32))))
    shapes = []
    for stage in (network.layer1, network.layer2, network.layer3):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"depth must be 6 n \+ 2 .*, got 18"):
        resnet(18, num_classes=10)
    with pytest.raises(ConfigError, match=r"widths must be four positive numbers .*, got \[16, 32, 64\]"):
        resnet(20, (16, 32, 64), num_classes=10)
