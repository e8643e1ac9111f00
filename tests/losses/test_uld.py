"""ULD: sorted probabilities of two vocabularies."""

from __future__ import annotations

import pytest
import torch

from kdkit.errors import InputError
from kdkit.losses import ULDLoss, uld_loss

from .conftest import Golden
from .reference import law


def test_golden(golden: Golden) -> None:
    assert uld_loss(golden.student, golden.teacher).item() == pytest.approx(0.4334824228, abs=1e-10)


@pytest.mark.parametrize("sizes", [(5, 3), (3, 5), (4, 4)])
def test_equals_plain_loops(sizes: tuple[int, int], rng: torch.Generator) -> None:
    student, teacher = (torch.randn(6, size, generator=rng, dtype=torch.float64) for size in sizes)
    values = uld_loss(student, teacher, temperature=(2.0, 0.5), reduction="none")
    for value, s, t in zip(values, student, teacher, strict=True):
        q, p = sorted(law(s, 2.0), reverse=True), sorted(law(t, 0.5), reverse=True)
        long = max(sizes)
        q, p = q + [0.0] * (long - len(q)), p + [0.0] * (long - len(p))
        assert value.item() == pytest.approx(sum(abs(a - b) for a, b in zip(q, p, strict=True)), abs=1e-12)


def test_names_of_entries_do_not_matter(golden: Golden) -> None:
    shuffled = golden.student[:, [3, 1, 4, 0, 2]]
    assert torch.allclose(uld_loss(shuffled, golden.student), torch.zeros((), dtype=torch.float64))


def test_entries_that_nobody_predicts_change_nothing(golden: Golden) -> None:
    banned = torch.full((3, 4), -torch.inf, dtype=torch.float64)
    padded = torch.cat([golden.teacher, banned], dim=1)
    assert torch.allclose(uld_loss(golden.student, padded), uld_loss(golden.student, golden.teacher))


def test_other_positions_are_refused(golden: Golden) -> None:
    with pytest.raises(InputError, match=r"uld_loss: teacher_logits must be of the positions .+ \[3\], got .+; align"):
        uld_loss(golden.student, golden.teacher[:2])
    assert ULDLoss().crosses_tokenizers
