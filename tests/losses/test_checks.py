"""One message format for every refusal."""

from __future__ import annotations

import math

import pytest
import torch

from kdkit.errors import InputError
from kdkit.losses._checks import (
    check_at_least,
    check_between,
    check_choice,
    check_labels,
    check_logits,
    check_positive,
    refuse,
)


def test_the_format() -> None:
    with pytest.raises(InputError, match=r"^x_loss: labels must be int64, got float32 \[8, 100\]; cast them$"):
        refuse("x_loss", "labels", "int64", torch.zeros(8, 100), "cast them")
    with pytest.raises(ValueError, match=r"^x_loss: gate must be soft, got 'hard'$"):
        refuse("x_loss", "gate", "soft", "hard")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "1", None])
def test_positive_numbers(value: object) -> None:
    with pytest.raises(InputError, match=r"^x: t must be a positive number, got "):
        check_positive("x", "t", value)  # type: ignore[type-var]
    assert check_positive("x", "t", 1e-9) == 1e-9


def test_ranges_say_which_ends_belong() -> None:
    assert check_between("x", "b", 0.0, 0.0, 1.0, ends="[)") == 0.0
    for ends, value in (("[)", 1.0), ("(]", 0.0), ("()", 0.0)):
        with pytest.raises(InputError, match=rf"^x: b must be a number in \{ends[0]}0.0, 1.0\{ends[1]}, got {value}"):
            check_between("x", "b", value, 0.0, 1.0, ends=ends)


def test_integers_are_not_rounded() -> None:
    assert check_at_least("x", "n", 3, 1) == 3
    with pytest.raises(InputError, match=r"^x: n must be an integer of at least 1, got 3.0$"):
        check_at_least("x", "n", 3.0, 1)


def test_choices_suggest_the_closest() -> None:
    with pytest.raises(InputError, match=r"got 'exakt'; did you mean 'exact'\?$"):
        check_choice("x", "solver", "exakt", ("exact", "sinkhorn"))
    with pytest.raises(InputError, match=r"got 'zzz'$"):
        check_choice("x", "solver", "zzz", ("exact", "sinkhorn"))


def test_logits_say_both_shapes() -> None:
    text = r"^x: teacher_logits must be of the shape of student_logits, \[2, 3\], got float32 \[2, 4\]; both networks"
    with pytest.raises(InputError, match=text):
        check_logits("x", torch.zeros(2, 3), torch.zeros(2, 4))


def test_labels_on_another_device_are_not_looked_at() -> None:
    labels = torch.full((2,), 99, device="meta")
    check_labels("x", labels, torch.Size([2]), 10, -100)
