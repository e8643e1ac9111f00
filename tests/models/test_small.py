"""Small networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.errors import ConfigError
from kdkit.features import list_layers
from kdkit.models import count_parameters, mlp, small_cnn


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("depth", [1, 3])
def test_small_cnn(size: int, depth: int) -> None:
    network = small_cnn(4, depth, num_classes=10, in_chans=3)
    assert network(torch.randn(2, 3, size, size)).shape == (2, 10)
    assert isinstance(network.classifier, nn.Linear)
    assert network.classifier.in_features == 4 * 2 ** (depth - 1)


def test_small_cnn_layers() -> None:
    shapes = {layer.name: layer.shape for layer in list_layers(small_cnn(4, num_classes=10), torch.zeros(1, 1, 8, 8))}
    assert shapes["block1"] == (1, 4, 8, 8)
    assert shapes["block3"] == (1, 16, 2, 2)
    assert shapes["pool"] == shapes["penultimate"] == (1, 16)


def test_mlp() -> None:
    network = mlp([8, 4], num_classes=10, image_size=8, dropout=0.1)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert count_parameters(network) == 64 * 8 + 8 + 8 * 4 + 4 + 4 * 10 + 10
    assert count_parameters(mlp([], num_classes=10, image_size=8)) == 650


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"width and depth must be at least 1, got width=0, depth=3"):
        small_cnn(0, num_classes=10)
    with pytest.raises(ConfigError, match=r"every hidden layer needs at least one unit, got hidden=\[8, 0\]"):
        mlp([8, 0], num_classes=10, image_size=8)
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\), got 1.5"):
        mlp(num_classes=10, image_size=8, dropout=1.5)
