"""Rows of two tokenizations: where groups begin, what the tokens after the first one are worth."""

from __future__ import annotations

import pytest
import torch

from kdkit.errors import InputError
from kdkit.losses import GOLDLoss, ULDLoss, gold_loss, uld_loss
from kdkit.losses._groups import group_rows
from kdkit.objective import Objective
from kdkit.outputs import Alignment, ModelOutput, StepOutputs

GROUPS = Alignment(
    student_groups=torch.tensor([[0, 1, 1, 2, 0], [1, 2, 2, 2, 3]]),
    teacher_groups=torch.tensor([[1, 2, 2, 0], [1, 2, 3, 3]]),
    student_tokens=torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]),
    teacher_tokens=torch.tensor([[5, 4, 3, 2], [0, 1, 2, 3]]),
)


def step(rng: torch.Generator, mask: torch.Tensor | None = None) -> StepOutputs:
    student = torch.randn(2, 5, 5, generator=rng, dtype=torch.float64)
    teacher = torch.randn(2, 4, 6, generator=rng, dtype=torch.float64)
    return StepOutputs(ModelOutput(student), ModelOutput(teacher), mask=mask, alignment=GROUPS)


def test_firsts() -> None:
    groups = torch.tensor([[1, 1, 2, 0, 0, 3, 3]])
    assert Alignment.firsts(groups).tolist() == [[True, False, True, False, False, True, False]]


def test_rows_and_rests(rng: torch.Generator) -> None:
    out = step(rng)
    assert out.teacher is not None
    student, teacher = out.student.logits, out.teacher.logits
    rows = group_rows("test", student, teacher, GROUPS, temperature=(1.0, 2.0))
    places = [(0, 1), (0, 3), (1, 0), (1, 1), (1, 4)], [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert torch.equal(rows.student, torch.stack([student[place] for place in places[0]]))
    assert torch.equal(rows.teacher, torch.stack([teacher[place] for place in places[1]]))
    said, taught = student.log_softmax(-1), (teacher / 2).log_softmax(-1)
    rests = [said[0, 2, 2], 0.0, 0.0, said[1, 2, 2] + said[1, 3, 1], 0.0]
    assert torch.allclose(rows.student_rest, torch.tensor(rests, dtype=torch.float64))
    rests = [0.0, taught[0, 2, 3], 0.0, 0.0, taught[1, 3, 3]]
    assert torch.allclose(rows.teacher_rest, torch.tensor(rests, dtype=torch.float64))


def test_the_probability_of_a_group_is_that_of_its_tokens(rng: torch.Generator) -> None:
    out = step(rng)
    assert out.teacher is not None
    rows = group_rows("test", out.student.logits, out.teacher.logits, GROUPS)
    whole = rows.student.log_softmax(-1)[3, 3] + rows.student_rest[3]
    said = out.student.logits.log_softmax(-1)
    assert torch.allclose(whole, said[1, 1, 3] + said[1, 2, 2] + said[1, 3, 1])


@pytest.mark.parametrize("loss", [ULDLoss(), GOLDLoss(shared=[[0, 1], [4, 5]], temperature=(1.0, 2.0))])
def test_a_value_stands_where_its_group_begins(loss: ULDLoss | GOLDLoss, rng: torch.Generator) -> None:
    mask = torch.tensor([[True] * 5, [True, False, True, True, True]])
    out = step(rng, mask)
    assert out.teacher is not None
    values = loss.compute(out)
    where = [(0, 1), (0, 3), (1, 0), (1, 4)]
    assert sorted(map(tuple, values.nonzero().tolist())) == where
    rows = group_rows("test", out.student.logits, out.teacher.logits, GROUPS, temperature=(1.0, 2.0), mask=mask)
    if isinstance(loss, ULDLoss):
        expected = uld_loss(rows.student, rows.teacher, reduction="none")
    else:
        rests = {"student_rest": rows.student_rest, "teacher_rest": rows.teacher_rest}
        pairs, cool = [[0, 1], [4, 5]], (1.0, 2.0)
        expected = gold_loss(rows.student, rows.teacher, **rests, shared=pairs, temperature=cool, reduction="none")
    assert torch.allclose(values[tuple(zip(*where, strict=True))], expected)


def test_the_objective_divides_by_the_groups(rng: torch.Generator) -> None:
    out = step(rng, torch.ones(2, 5, dtype=torch.bool))
    loss = ULDLoss()
    total, terms = Objective({"uld": loss}, {"uld": 2.0})(out)
    assert torch.allclose(terms["uld"], loss.compute(out).sum() / 5)
    assert torch.allclose(total, 2 * terms["uld"].to(total.dtype))
    assert {kind: int(count) for kind, count in Objective.local_counts(out).items()} == {
        "positions": 10,
        "labelled": 0,
        "groups": 5,
    }
    out.weights = torch.tensor([1.0, 3.0])
    _, weighed = Objective({"uld": loss}, {"uld": 1.0})(out)
    sums = loss.compute(out).sum(dim=1)
    assert torch.allclose(weighed["uld"], (sums[0] + 3 * sums[1]) / (2 + 3 * 3))


def test_gradients_reach_every_token_of_a_group(rng: torch.Generator) -> None:
    out = step(rng)
    out.student.logits.requires_grad_()
    GOLDLoss(shared=[[0, 0], [3, 3]]).compute(out).sum().backward()
    assert out.student.logits.grad is not None
    touched = out.student.logits.grad.abs().sum(-1) > 0
    assert torch.equal(touched, GROUPS.student_groups != 0)


def test_a_text_without_groups_is_zero(rng: torch.Generator) -> None:
    out = step(rng)
    out.alignment = Alignment(*(torch.zeros_like(getattr(GROUPS, name)) for name in Alignment.__slots__))
    out.student.logits.requires_grad_()
    value = ULDLoss().compute(out).sum()
    value.backward()
    assert value.item() == 0
    assert out.student.logits.grad is not None
    assert not bool(out.student.logits.grad.any())


def test_alignments_that_do_not_fit_are_refused(rng: torch.Generator) -> None:
    out = step(rng)
    assert out.teacher is not None
    both = out.student.logits, out.teacher.logits
    odd = Alignment(GROUPS.student_groups, GROUPS.teacher_groups * 0, GROUPS.student_tokens, GROUPS.teacher_tokens)
    with pytest.raises(InputError, match=r"x: alignment.teacher_groups must be of 5 groups, .+, got 0; both sides"):
        group_rows("x", *both, odd)
    with pytest.raises(InputError, match=r"x: student_logits must be float of shape \[2, 5, 'V'\], as its groups"):
        group_rows("x", both[0][:, :3], both[1], GROUPS)
