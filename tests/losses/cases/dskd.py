"""DSKD: projectors of its own, and the heads of both networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.outputs import IGNORE_INDEX, ModelOutput, StepOutputs

from . import Case, Departure, Inputs


def construct(classes: int) -> dict[str, Any]:
    torch.manual_seed(7)
    heads = nn.Linear(3, classes), nn.Linear(4, classes + 1, bias=False)
    heads[0].bias.data = 4 * torch.eye(1, classes)[0]  # what the teacher's states say to the student's head: class 0
    return {"student_head": heads[0].double(), "teacher_head": heads[1].double()}


def inputs(shape: tuple[int, ...], classes: int, rng: torch.Generator) -> Inputs:
    def draw(width: int) -> Tensor:
        return torch.randn(*shape, width, generator=rng, dtype=torch.float64)

    labels = torch.arange(math.prod(shape)).view(shape) % 2  # class 0 is found, class 1 is not
    if labels.numel() > 3:
        labels.view(-1)[3] = IGNORE_INDEX
    return {
        "teacher_logits": 2 * draw(classes + 1),
        "student_features": draw(3),
        "teacher_features": draw(4),
        "labels": labels,
    }


def arguments(loss: Any, values: Inputs) -> tuple[Any, ...]:
    crossed = loss.cross(values["student_features"], values["teacher_features"])
    return values["student_logits"], values["teacher_logits"], *crossed, values["labels"]


def equal(case: Case) -> Inputs:
    return case.inputs


def at_equality(case: Case) -> Tensor:
    """There is no such place: the value at the inputs, by functions of torch."""
    loss: Any = case.loss
    student, teacher, labels = (case.inputs[key] for key in ("student_logits", "teacher_logits", "labels"))
    guess = F.linear(loss.to_student(case.inputs["teacher_features"]), loss._heads[0].weight, loss._heads[0].bias)
    other = F.linear(loss.to_teacher(case.inputs["student_features"]), loss._heads[1].weight)
    value = F.cross_entropy(guess, labels, ignore_index=-100, reduction="none")
    taught = F.kl_div(student.log_softmax(-1), guess.softmax(-1), reduction="none").sum(-1)
    value = value + taught * (guess.argmax(-1) == labels)
    return value + F.kl_div(other.log_softmax(-1), teacher.softmax(-1), reduction="none").sum(-1)


def step(case: Case, mask: Tensor | None) -> StepOutputs:
    """Logits and states of both."""
    sides = [
        ModelOutput(case.inputs[f"{side}_logits"], {"penultimate": case.inputs[f"{side}_features"]})
        for side in ("student", "teacher")
    ]
    return StepOutputs(*sides, case.inputs["labels"], mask)


DEPARTURE = Departure(
    construct=construct,
    inputs=inputs,
    arguments=arguments,
    constructor_only=frozenset({"student_head", "teacher_head"}),
    equal=equal,
    at_equality=at_equality,
    shapes="",
    step=step,
    probe_parameters=False,
)
