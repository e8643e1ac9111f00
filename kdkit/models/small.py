"""Small networks for small images: a plain convolutional network and a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kdkit.errors import ConfigError

__all__ = ["mlp", "small_cnn"]


def small_cnn(width: int = 8, depth: int = 3, *, num_classes: int, in_chans: int = 1) -> nn.Sequential:
    """``depth`` blocks of 3x3 convolution, batch norm and ReLU, global average pooling, a linear classifier.

    Block ``i`` has ``width * 2**i`` channels; every block but the first halves the side. For images of 8 to 64
    pixels. Layers to tap: ``block1``, ``block2``, ..., ``pool``.

    Args:
        width: channels of the first block.
        depth: number of blocks.
        num_classes: outputs.
        in_chans: channels of the image.

    Raises:
        ConfigError: for a width or depth below 1.
    """
    if width < 1 or depth < 1:
        raise ConfigError(f"small_cnn: width and depth must be at least 1, got width={width}, depth={depth}")
    network = nn.Sequential()
    channels = in_chans
    for index in range(depth):
        out = width * 2**index
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(channels, out, 3, 1 if index == 0 else 2, 1, bias=False))
        block.add_module("norm", nn.BatchNorm2d(out))
        block.add_module("relu", nn.ReLU())
        network.add_module(f"block{index + 1}", block)
        channels = out
    network.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    network.add_module("classifier", nn.Linear(channels, num_classes))
    return network


def mlp(
    hidden: Sequence[int] = (64,), *, num_classes: int, in_chans: int = 1, image_size: int, dropout: float = 0.0
) -> nn.Sequential:
    """A perceptron on the flattened image: linear layer, ReLU and dropout per hidden layer, a linear classifier.

    Args:
        hidden: units of each hidden layer; empty for a linear classifier.
        num_classes: outputs.
        in_chans: channels of the image.
        image_size: side of the image in pixels.
        dropout: probability of dropping a hidden unit, in [0, 1).

    Raises:
        ConfigError: for a layer without units or a dropout outside its range.
    """
    if any(units < 1 for units in hidden):
        raise ConfigError(f"mlp: every hidden layer needs at least one unit, got hidden={list(hidden)}")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"mlp: dropout must be in [0, 1), got {dropout}")
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    units_in = in_chans * image_size**2
    for index, units in enumerate(hidden):
        layer = nn.Sequential()
        layer.add_module("linear", nn.Linear(units_in, units))
        layer.add_module("relu", nn.ReLU())
        if dropout:
            layer.add_module("dropout", nn.Dropout(dropout))
        network.add_module(f"hidden{index + 1}", layer)
        units_in = units
    network.add_module("classifier", nn.Linear(units_in, num_classes))
    return network
