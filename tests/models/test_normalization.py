"""Which input normalisation a network gets."""

from __future__ import annotations

import pytest
from torch import nn

from kdkit.data._base import ImageSpec
from kdkit.errors import ConfigError
from kdkit.models import resolve_normalization
from kdkit.models._build import Origin, note_origin

GREY = ImageSpec(10, 1, 8, (0.3,), (0.2,))
COLOUR = ImageSpec(10, 3, 8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def pretrained() -> nn.Module:
    return note_origin(nn.Linear(1, 1), Origin("timm", "x", {}, (0.5, 0.6, 0.7), (0.1, 0.1, 0.4)))


def test_fresh_networks_take_the_datas() -> None:
    assert resolve_normalization(nn.Linear(1, 1), COLOUR) == (COLOUR.mean, COLOUR.std)
    assert resolve_normalization(note_origin(nn.Linear(1, 1), Origin("timm", "x")), GREY) == (GREY.mean, GREY.std)


def test_pretrained_networks_keep_their_own() -> None:
    assert resolve_normalization(pretrained(), COLOUR) == ((0.5, 0.6, 0.7), (0.1, 0.1, 0.4))
    assert resolve_normalization(pretrained(), COLOUR, "model") == ((0.5, 0.6, 0.7), (0.1, 0.1, 0.4))
    assert resolve_normalization(pretrained(), COLOUR, "data") == (COLOUR.mean, COLOUR.std)


def test_pretrained_on_colour_used_on_grey() -> None:
    mean, std = resolve_normalization(pretrained(), GREY)
    assert mean == pytest.approx((0.6,))
    assert std == pytest.approx((0.2,))


def test_given_and_none() -> None:
    assert resolve_normalization(pretrained(), COLOUR, "none") == (None, None)
    given = {"mean": [0.5], "std": [0.25]}
    assert resolve_normalization(pretrained(), COLOUR, given) == ((0.5,) * 3, (0.25,) * 3)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"'model' needs a network with pretrained weights, Linear has none"):
        resolve_normalization(nn.Linear(1, 1), GREY, "model")
    with pytest.raises(ConfigError, match=r"must be null, 'model', 'data', 'none' or .*, got 'imagenet'"):
        resolve_normalization(nn.Linear(1, 1), GREY, "imagenet")
    with pytest.raises(ConfigError, match=r"mean must be a list of 3 numbers, got \[0.5, 0.5\]"):
        resolve_normalization(nn.Linear(1, 1), COLOUR, {"mean": [0.5, 0.5], "std": [1.0]})
    with pytest.raises(ConfigError, match=r"std must be a list of 3 numbers, got None"):
        resolve_normalization(nn.Linear(1, 1), COLOUR, {"mean": [0.5]})
    with pytest.raises(ConfigError, match=r"std must be positive, got \[0.0\]"):
        resolve_normalization(nn.Linear(1, 1), GREY, {"mean": [0.5], "std": [0.0]})
