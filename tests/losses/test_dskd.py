"""DSKD: what teaches what, rows by groups, projectors that are sized once and stay out of the student."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import InputError
from kdkit.losses import DSKDLoss, dskd_loss
from kdkit.losses._base import Probe
from kdkit.outputs import Alignment, ModelOutput, StepOutputs

ALIGNMENT = Alignment(
    student_groups=torch.tensor([[1, 1, 2], [0, 1, 2]]),
    teacher_groups=torch.tensor([[1, 2], [1, 2]]),
    student_tokens=torch.tensor([[4, 1, 2], [3, 0, 1]]),
    teacher_tokens=torch.tensor([[0, 1], [2, 3]]),
)


def heads() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 5, bias=False), nn.Linear(6, 4)


def step(rng: torch.Generator) -> StepOutputs:
    own, other = heads()
    states = torch.randn(2, 3, 3, generator=rng), torch.randn(2, 2, 6, generator=rng)
    outputs = [
        ModelOutput(head(state).detach().requires_grad_(), {"penultimate": state.requires_grad_()})
        for head, state in zip((own, other), states, strict=True)
    ]
    return StepOutputs(*outputs, alignment=ALIGNMENT)


def test_by_hand() -> None:
    student = torch.tensor([[0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0]])
    right, wrong = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    other = torch.zeros(1, 3)
    labels = torch.tensor([1])

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum()

    found = dskd_loss(student, teacher, right, other, labels)
    assert torch.allclose(found, -right.log_softmax(-1)[0, 1] + kl(right, student) + kl(teacher, other))
    missed = dskd_loss(student, teacher, wrong, other, labels)
    assert torch.allclose(missed, -wrong.log_softmax(-1)[0, 1] + kl(teacher, other))
    unlabelled = dskd_loss(student, teacher, right, other, torch.tensor([-100]))
    assert torch.allclose(unlabelled, kl(teacher, other))


def test_each_part_teaches_what_it_should(rng: torch.Generator) -> None:
    out = step(rng)
    own, other = heads()
    loss = DSKDLoss(student_head=own, teacher_head=other)
    loss.compute(out).sum().backward()
    assert out.teacher is not None
    assert out.student.features["penultimate"].grad is not None
    assert out.teacher.features["penultimate"].grad is None
    assert out.teacher.logits.grad is None
    assert own.weight.grad is None
    assert other.weight.grad is None
    assert {name for name, _ in loss.named_parameters()} == {
        "to_student.weight",
        "to_student.bias",
        "to_teacher.weight",
        "to_teacher.bias",
    }
    assert all(bool((parameter.grad != 0).any()) for parameter in loss.parameters())


def test_rows_are_those_of_groups(rng: torch.Generator) -> None:
    out = step(rng)
    loss = DSKDLoss(student_head=heads()[0], teacher_head=heads()[1])
    values = loss.compute(out)
    assert out.teacher is not None
    places = torch.tensor([[0, 0], [0, 2], [1, 1], [1, 2]]).T, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).T
    sides = list(zip((out.student, out.teacher), places, strict=True))
    rows = [output.logits[tuple(place)] for output, place in sides]
    states = [output.features["penultimate"][tuple(place)] for output, place in sides]
    loss.reduction = "none"
    expected = loss(*rows, *states, torch.tensor([4, 2, 0, 1]))
    assert torch.allclose(values[tuple(places[0])], expected)
    assert torch.count_nonzero(values) == 4


def test_projectors_are_made_once_and_travel(rng: torch.Generator) -> None:
    out = step(rng)
    own, other = heads()
    probe = Probe(out, 2, 5, heads={"student": own, "teacher": other})
    loss = DSKDLoss()
    with pytest.raises(InputError, match=r"DSKDLoss: student_head must be known, got None; call prepare\(probe\)"):
        loss.compute(out)
    loss.prepare(probe)
    again = DSKDLoss()
    again.prepare(probe)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.compute(out), loss.compute(out))
    first = loss.to_student
    loss.prepare(probe)
    assert loss.to_student is first


def test_padding_that_was_cut_off_the_logits_is_cut_off_the_heads_too() -> None:
    own, other = heads()
    rows = torch.randn(2, 3), torch.randn(2, 6)
    loss = DSKDLoss(student_head=own, teacher_head=other)
    narrow = loss(own(rows[0])[:, :4], other(rows[1])[:, :3], *rows, torch.tensor([0, 3]))
    for head, size in ((own, 4), (other, 3)):
        head.weight.data = head.weight.data[:size]
    other.bias.data = other.bias.data[:3]
    assert torch.allclose(narrow, loss(own(rows[0]), other(rows[1]), *rows, torch.tensor([0, 3])))


def test_wrong_tensors_are_refused(rng: torch.Generator) -> None:
    loss = DSKDLoss(student_head=heads()[0], teacher_head=heads()[1])
    logits, labels = (torch.zeros(2, 5), torch.zeros(2, 4)), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=r"DSKDLoss: teacher_features must be of width 6, which the teacher's head"):
        loss(*logits, torch.zeros(2, 3), torch.zeros(2, 5), labels)
    with pytest.raises(InputError, match=r"dskd_loss: student_in_teacher must be float of shape \[2, 4\], got"):
        dskd_loss(*logits, torch.zeros(2, 5), torch.zeros(2, 5), labels)
    with pytest.raises(InputError, match=r"dskd_loss: labels must be int64 of shape \[2\], got float32 \[2, 5\]"):
        dskd_loss(*logits, *logits, torch.zeros(2, 5))
