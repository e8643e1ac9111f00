"""ND against the authors' per-sample formula, its two regimes, zero vectors and its buffer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdkit.errors import InputError
from kdkit.losses import NDLoss, Probe, nd_loss
from kdkit.outputs import ModelOutput, StepOutputs


@pytest.fixture
def features(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student, teacher = torch.randn(2, 8, 5, generator=rng, dtype=torch.float64)
    return student, 1.1 * teacher, torch.randint(4, (8,), generator=rng), torch.randn(4, 5, generator=rng).double()


def test_against_loops(features: tuple[Tensor, ...]) -> None:
    student, teacher, labels, means = features
    expected = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist()):
        mean = means[y].tolist()
        length = sum(x * x for x in mean) ** 0.5
        largest = max(sum(x * x for x in s) ** 0.5, sum(x * x for x in t) ** 0.5)
        expected.append(1 - sum(a * b / length for a, b in zip(s, mean)) / largest)
    value = nd_loss(student, teacher, labels, class_means=means, reduction="none")
    assert value.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_longer_student_gets_the_cosine_with_the_gradient_through_its_norm(features: tuple[Tensor, ...]) -> None:
    student, teacher, labels, means = features
    student = (10 * student).requires_grad_()
    value = nd_loss(student, teacher, labels, class_means=means)
    cosine = (1 - torch.cosine_similarity(student, means[labels])).mean()
    assert torch.allclose(value, cosine)
    slope, expected = (torch.autograd.grad(total, student)[0] for total in (value, cosine))
    assert torch.allclose(slope, expected)
    assert torch.allclose((slope * student).sum(-1), torch.zeros(8, dtype=torch.float64), atol=1e-12)


def test_a_shorter_student_is_rewarded_for_growing(features: tuple[Tensor, ...]) -> None:
    student, teacher, labels, means = features
    student = (0.01 * student).requires_grad_()
    value = nd_loss(student, teacher, labels, class_means=means, reduction="sum")
    direction = means[labels] / means[labels].norm(dim=-1, keepdim=True)
    assert torch.allclose(torch.autograd.grad(value, student)[0], -direction / teacher.norm(dim=-1, keepdim=True))


def test_features_of_equal_length_take_the_students_norm(features: tuple[Tensor, ...]) -> None:
    student, _, labels, means = features
    student = student.clone().requires_grad_()
    slope = torch.autograd.grad(nd_loss(student, student.detach(), labels, class_means=means), student)[0]
    assert torch.allclose((slope * student).sum(-1), torch.zeros(8, dtype=torch.float64), atol=1e-12)


def test_it_is_zero_along_the_class_mean_and_two_against_it() -> None:
    means = torch.tensor([[3.0, 4.0]])
    labels, teacher = torch.tensor([0]), torch.tensor([[1.0, 0.0]])
    assert nd_loss(2 * means, teacher, labels, class_means=means).item() == pytest.approx(0, abs=1e-6)
    assert nd_loss(-2 * means, teacher, labels, class_means=means).item() == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_vectors_give_one_and_no_gradient(dtype: torch.dtype) -> None:
    zero, some = torch.zeros(1, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype)
    labels = torch.tensor([0])
    for student, teacher, means, moves in (
        (some, some, zero, False),
        (zero, zero, some, False),
        (zero, some, some, True),
    ):
        student = student.clone().requires_grad_()
        value = nd_loss(student, teacher, labels, class_means=means)
        slope = torch.autograd.grad(value, student)[0]
        assert value.item() == 1
        assert bool(slope.isfinite().all())
        assert bool((slope != 0).any()) == moves


def test_soft_labels_stand_for_their_likeliest_class(features: tuple[Tensor, ...]) -> None:
    student, teacher, labels, means = features
    soft = torch.nn.functional.one_hot(labels, 4).double() * 0.7 + 0.075
    values = [nd_loss(student, teacher, y, class_means=means) for y in (labels, soft)]
    assert torch.equal(*values)


def test_wrong_class_means_and_widths_are_refused(features: tuple[Tensor, ...]) -> None:
    student, teacher, labels, means = features
    text = r"^nd_loss: class_means must be of shape \[C, 5\], one row per class, got float64 \[4, 4\]"
    with pytest.raises(InputError, match=text):
        nd_loss(student, teacher, labels, class_means=means[:, :4])
    with pytest.raises(InputError, match=r"labels must be in \[0, 2\)"):
        nd_loss(student, teacher, labels, class_means=means[:2])
    text = r"teacher_features must be of the shape of student_features, \[8, 4\], got float64 \[8, 5\]; put a projector"
    with pytest.raises(InputError, match=text):
        nd_loss(student[:, :4], teacher, labels, class_means=means)


# ---- the module's buffer -------------------------------------------------------------------------------------------


def _probe(means: Tensor | None) -> Probe:
    outputs = StepOutputs(ModelOutput(torch.zeros(2, 4)))
    return Probe(
        outputs, num_samples=10, num_classes=4, class_means=None if means is None else {"penultimate": means}.get
    )


def test_prepare_fills_the_means_and_compute_uses_them(features: tuple[Tensor, ...]) -> None:
    student, teacher, labels, means = (value.float() if value.is_floating_point() else value for value in features)
    loss = NDLoss()
    logits = torch.zeros(8, 4)
    step = StepOutputs(
        ModelOutput(logits, {"penultimate": student}), ModelOutput(logits, {"penultimate": teacher}), labels
    )
    with pytest.raises(
        InputError, match=r"^NDLoss: class_means must be .+, got float32 \[0, 0\]; call prepare\(probe\)"
    ):
        loss.compute(step)
    loss.prepare(_probe(means))
    assert torch.equal(loss.compute(step), nd_loss(student, teacher, labels, class_means=means, reduction="none"))
    assert loss.pairs == ("penultimate",)


def test_prepare_without_class_means_is_refused() -> None:
    with pytest.raises(InputError, match=r"^NDLoss: probe.class_means must be a function"):
        NDLoss().prepare(_probe(None))


@pytest.mark.parametrize("prepared", [False, True])
def test_the_means_come_back_from_a_state_dict_before_and_after_prepare(prepared: bool) -> None:
    means = torch.arange(12.0).view(4, 3)
    stored = torch.nn.ModuleDict({"nd": NDLoss(class_means=means)}).state_dict()
    fresh = torch.nn.ModuleDict({"nd": NDLoss()})
    if prepared:
        fresh["nd"].prepare(_probe(torch.zeros(4, 3)))
    fresh.load_state_dict(stored)
    assert torch.equal(fresh["nd"].class_means, means)
    assert stored["nd.class_means"].data_ptr() != fresh["nd"].class_means.data_ptr()


def test_means_of_another_shape_are_refused_on_loading() -> None:
    fresh = NDLoss(class_means=torch.zeros(5, 3))
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(NDLoss(class_means=torch.zeros(4, 3)).state_dict())
