"""MultiLevelOT against plain loops: order by the sequence, what is kept, the transport."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdkit.errors import InputError
from kdkit.losses import MultiLevelOTLoss, multilevel_ot_loss
from kdkit.losses._groups import group_rows
from kdkit.outputs import Alignment, ModelOutput, StepOutputs

from .reference import law


def laws(logits: Tensor) -> list[list[float]]:
    """Softmax of rows divided by their standard deviation, entries in the order of their sums."""
    rows = []
    for row in logits:
        mean = sum(row.tolist()) / len(row)
        deviation = math.sqrt(sum((float(z) - mean) ** 2 for z in row) / len(row) + 1e-8)
        rows.append(law(row / deviation))
    order = sorted(range(logits.shape[1]), key=lambda c: -sum(row[c] for row in rows))
    return [[row[c] for c in order] for row in rows]


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6)])
def test_token_level_equals_plain_loops(sizes: tuple[int, int], rng: torch.Generator) -> None:
    student, teacher = (2 * torch.randn(5, size, generator=rng, dtype=torch.float64) for size in sizes)
    values = multilevel_ot_loss(student, teacher, top=3, log_weight=0.3, sequence_weight=0.0, reduction="none")
    for value, q, p in zip(values, laws(student), laws(teacher), strict=True):
        gap = sum(abs(a - b) for a, b in zip(q[:3], p[:3], strict=True))
        log = -sum(b * math.log(a) for a, b in zip(q[:3], p[:3], strict=True))
        assert value.item() == pytest.approx(gap + 0.3 * log, abs=1e-12)


def test_the_transport_counts_at_every_position_of_its_sequence(rng: torch.Generator) -> None:
    student, teacher = (2 * torch.randn(2, 4, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    without = multilevel_ot_loss(student, teacher, sequence_weight=0.0, reduction="none")
    costs = multilevel_ot_loss(student, teacher, sequence_weight=1.0, reduction="none") - without
    assert torch.allclose(costs, costs[:, :1].expand(2, 4))
    assert not torch.allclose(costs[0], costs[1])
    for number in range(2):
        q, p = (torch.tensor(laws(side[number]), dtype=torch.float64) for side in (student, teacher))
        cost = torch.cdist(q, p, p=1)
        plan = torch.exp(-cost / 0.1)
        for _ in range(2000):
            plan = plan / plan.sum(dim=1, keepdim=True) / 4
            plan = plan / plan.sum(dim=0, keepdim=True) / 4
        assert torch.allclose(costs[number, 0], (plan * cost).sum(), rtol=1e-6)


def test_sequences_one_after_the_other(rng: torch.Generator) -> None:
    student, teacher = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    joined = multilevel_ot_loss(student, teacher, lengths=[2, 0, 3], reduction="none")
    apart = [multilevel_ot_loss(student[part], teacher[part], reduction="none") for part in (slice(0, 2), slice(2, 5))]
    assert torch.allclose(joined, torch.cat(apart))
    with pytest.raises(
        InputError, match=r"lengths must be integers that add up to the 5 rows of \[N, V\], got \[2, 2\]"
    ):
        multilevel_ot_loss(student, teacher, lengths=[2, 2])


def test_a_row_of_the_batch_is_a_sequence(rng: torch.Generator) -> None:
    groups = torch.tensor([[1, 1, 2], [0, 1, 2]]), torch.tensor([[1, 2], [1, 2]])
    alignment = Alignment(*groups, *(torch.zeros_like(each) for each in groups))
    student = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    teacher = torch.randn(2, 2, 4, generator=rng, dtype=torch.float64)
    out = StepOutputs(ModelOutput(student), ModelOutput(teacher), alignment=alignment)
    loss = MultiLevelOTLoss(temperature=2.0)
    values = loss.compute(out)
    rows = group_rows("test", student, teacher, alignment)
    both = rows.student.view(2, 2, 5), rows.teacher.view(2, 2, 4)
    expected = multilevel_ot_loss(*both, temperature=2.0, reduction="none")
    assert torch.allclose(values[0, [0, 2]], expected[0])
    assert torch.allclose(values[1, [1, 2]], expected[1])
    assert torch.count_nonzero(values) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be an integer of at least 1, got 0"),
        ({"log_weight": -1.0}, "log_weight must be a number of at least 0.0, got -1.0"),
        ({"sequence_weight": "1"}, "sequence_weight must be a number of at least 0.0, got '1'"),
        ({"epsilon": 0.0}, "epsilon must be a positive number, got 0.0"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"multilevel_ot_loss: {message}"):
        multilevel_ot_loss(torch.zeros(2, 3), torch.zeros(2, 3), **options)
    with pytest.raises(InputError, match=f"MultiLevelOTLoss: {message}"):
        MultiLevelOTLoss(**options)
