"""Projectors: shapes in, shapes out, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from kdkit.errors import ConfigError
from kdkit.features import BatchNormDropoutLinear, ConvProjector, Identity, LinearProjector, build_projector

SHAPES = [
    ((2, 8), (2, 8), Identity),
    ((2, 5, 8), (2, 5, 8), Identity),
    ((2, 8, 4, 4), (2, 8, 4, 4), Identity),
    ((2, 8), (2, 16), LinearProjector),
    ((2, 5, 8), (2, 5, 16), LinearProjector),
    ((2, 8, 4, 4), (2, 16, 4, 4), ConvProjector),
    ((2, 8, 8, 8), (2, 8, 4, 4), ConvProjector),
    ((2, 8, 2, 2), (2, 16, 4, 4), ConvProjector),
    ((2, 8, 2, 8), (2, 16, 4, 4), ConvProjector),
]


@pytest.mark.parametrize(("student", "teacher", "kind"), SHAPES)
def test_auto_fits(student: tuple[int, ...], teacher: tuple[int, ...], kind: type) -> None:
    projector = build_projector("auto", student, teacher)
    assert type(projector) is kind
    assert projector(torch.randn(student)).shape == teacher
    assert projector(torch.randn(7, *student[1:])).shape == (7, *teacher[1:])


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 8), (2, 8, 4, 4)), ((2, 5, 8), (2, 16)), ((2, 1, 2, 3, 4), (2, 1, 2, 3, 5))]
)
def test_auto_refuses_what_nothing_bridges(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"no projector leads from \[B, .*\] \(student\) to \[B, .*\] \(teacher\)"):
        build_projector("auto", student, teacher)


def test_tokens_must_be_equally_many() -> None:
    with pytest.raises(ConfigError, match=r"LinearProjector needs as many tokens on both sides, got \[B, 5, 8\]"):
        build_projector("auto", (2, 5, 8), (2, 6, 8))


@pytest.mark.parametrize("word", ["none", None])
def test_none_is_identity_or_refuses(word: str | None) -> None:
    feature = torch.randn(2, 8)
    assert build_projector(word, (3, 8), (2, 8))(feature) is feature
    with pytest.raises(ConfigError, match=r"equal shape, got \[B, 8\] \(student\) and \[B, 9\] \(teacher\); use"):
        build_projector(word, (2, 8), (2, 9))


def test_unknown_word() -> None:
    with pytest.raises(ConfigError, match=r"must be 'auto', 'none' or a _target_ .* got 'aut'; did you mean 'auto'"):
        build_projector("aut", (2, 8), (2, 8))


def test_a_projector_of_ones_own() -> None:
    projector = build_projector(partial(ConvProjector, batch_norm=False), (2, 8, 4, 4), (2, 16, 4, 4))
    assert [name for name, _ in projector.named_parameters()] == ["conv.weight", "conv.bias"]
    with pytest.raises(ConfigError, match=r"ConvProjector needs features of shape \[B, C, H, W\] on both sides"):
        build_projector(ConvProjector, (2, 8), (2, 16))


def test_batch_norm_dropout_linear() -> None:
    projector = BatchNormDropoutLinear((2, 8), (2, 16))
    assert [type(layer).__name__ for layer in projector.children()] == ["BatchNorm1d", "Dropout", "Linear"]
    assert projector.dropout.p == 0.5
    assert projector(torch.randn(4, 8)).shape == (4, 16)
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\), got 1.0"):
        BatchNormDropoutLinear((2, 8), (2, 16), dropout=1.0)
    with pytest.raises(ConfigError, match=r"BatchNormDropoutLinear needs features of shape \[B, D\]"):
        BatchNormDropoutLinear((2, 3, 8), (2, 3, 16))


def test_a_larger_map_is_pooled_before_the_convolution() -> None:
    projector = ConvProjector((1, 2, 4, 4), (1, 3, 2, 2), batch_norm=False)
    feature = torch.randn(1, 2, 4, 4)
    pooled = torch.nn.functional.avg_pool2d(feature, 2)
    torch.testing.assert_close(projector(feature), projector.conv(pooled))
