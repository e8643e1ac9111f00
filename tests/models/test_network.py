"""The wrapper: normalisation, size, taps, head."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError
from kdkit.models import LanguageNetwork, VisionNetwork, small_cnn


def wrapped(**options: object) -> VisionNetwork:
    torch.manual_seed(0)
    return VisionNetwork(small_cnn(4, num_classes=3, in_chans=2), **options).eval()  # type: ignore[arg-type]


IMAGE = {"image": torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))}


def test_normalises_by_itself() -> None:
    network = wrapped(mean=(0.1, 0.2), std=(0.5, 0.25))
    mean, std = torch.tensor([0.1, 0.2]).view(1, 2, 1, 1), torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)
    torch.testing.assert_close(network(IMAGE).logits, network.module((IMAGE["image"] - mean) / std))
    torch.testing.assert_close(wrapped()(IMAGE).logits, network.module(IMAGE["image"]))


def test_statistics_are_not_weights() -> None:
    network = wrapped(mean=(0.1, 0.2), std=(0.5, 0.25))
    assert all(name.startswith("module.") for name in network.state_dict())


def test_resizes() -> None:
    network = wrapped(input_size=16)
    assert network.prepare(IMAGE["image"]).shape == (2, 2, 16, 16)
    wide = torch.rand(1, 2, 8, 16)
    assert network.prepare(wide).shape == (1, 2, 16, 16)


def test_half_precision_weights() -> None:
    network = wrapped(mean=(0.1, 0.2), std=(0.5, 0.25))
    expected = network(IMAGE).logits
    network.module.to(torch.bfloat16)
    logits = network(IMAGE).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.05)


def test_taps_come_and_go() -> None:
    network = wrapped()
    assert network(IMAGE).features == {}
    network.tap({"a": "penultimate", "b": "block1"})
    assert network.layers == {"a": "penultimate", "b": "block1"}
    features = network(IMAGE).features
    assert {name: tuple(value.shape) for name, value in features.items()} == {"a": (2, 16), "b": (2, 4, 8, 8)}
    network.tap({"c": "block2"})
    assert list(network(IMAGE).features) == ["c"]
    network.tap({})
    assert network(IMAGE).features == {}
    with pytest.raises(ConfigError, match=r"no layer 'block9'; did you mean"):
        network.tap({"a": "block9"})


def test_a_copy_taps_itself() -> None:
    network = wrapped()
    network.tap({"a": "penultimate"})
    other = copy.deepcopy(network)
    other.tap({})
    assert list(network(IMAGE).features) == ["a"]
    assert other(IMAGE).features == {}


def test_tap_after_compiling() -> None:
    torch.compiler.reset()
    network = wrapped()
    expected = network(IMAGE).logits
    network.module.compile(backend="eager")
    torch.testing.assert_close(network(IMAGE).logits, expected)
    network.tap({"a": "penultimate"})
    output = network(IMAGE)
    torch.testing.assert_close(output.logits, expected)
    assert output.features["a"].shape == (2, 16)
    network.tap({})
    assert network(IMAGE).features == {}
    torch.compiler.reset()


def test_head_and_layers() -> None:
    network = wrapped()
    assert network.head is network.module.classifier
    layers = {layer.name: layer.shape for layer in network.list_layers(IMAGE)}
    assert layers["block1"] == (2, 4, 8, 8)
    assert layers["penultimate"] == (2, 16)


def test_outputs_with_logits_and_without() -> None:
    class Says(nn.Module):
        def __init__(self, value: object) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> object:
            return self.value

    logits = torch.zeros(2, 3)
    assert VisionNetwork(Says(SimpleNamespace(logits=logits)))(IMAGE).logits is logits
    with pytest.raises(ConfigError, match=r"must return logits or an object with .logits, got dict"):
        VisionNetwork(Says({"a": 1}))(IMAGE)


def test_language_network_of_ones_own() -> None:
    class Own(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(input_ids, 5).float()

    network = LanguageNetwork(Own())
    ids = torch.arange(4)[None]
    assert network.attention == "sdpa"
    inputs = {"input_ids": ids, "attention_mask": ids, "position_ids": ids}
    assert network(inputs).logits.shape == (1, 4, 5)
