"""What every public loss owes. A new loss joins by existing; it is listed below only where it departs from the rule."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import kdkit.losses
from kdkit.errors import InputError
from kdkit.losses import DistillationLoss
from kdkit.outputs import IGNORE_INDEX, ModelOutput, StepOutputs


def _public() -> dict[str, tuple[type[DistillationLoss], Callable[..., Tensor]]]:
    """Class name -> (class, function), from every file of the package without an underscore."""
    found = {}
    for info in pkgutil.iter_modules(kdkit.losses.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"kdkit.losses.{info.name}")
        members = [getattr(module, name) for name in module.__all__]
        classes = [member for member in members if inspect.isclass(member)]
        functions = [member for member in members if inspect.isfunction(member)]
        assert len(classes) == len(functions) == 1, f"{module.__name__} must export one loss and one function"
        found[classes[0].__name__] = (classes[0], functions[0])
    return found


LOSSES = _public()
NAMES = sorted(LOSSES)
EVERY = pytest.mark.parametrize("name", NAMES)


def _means(classes: int) -> Tensor:
    return torch.randn(classes, classes, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


CONSTRUCT: dict[str, Callable[[int], dict[str, Any]]] = {"NDLoss": lambda classes: {"class_means": _means(classes)}}
"""Constructor arguments of losses that cannot work with their defaults alone, given the number of classes."""

NO_FULL_GRAPH = {
    "SinkhornLoss": "iterates until converged and drops masked rows",
    "SinKDReleasedLoss": "drops masked rows",
}
"""Losses whose control flow or shapes depend on the data."""


@dataclass
class Case:
    """A loss, its function with the same options, and float64 inputs in the order of ``forward``."""

    loss: DistillationLoss
    function: Callable[..., Tensor]
    options: dict[str, Any]
    inputs: dict[str, Tensor]

    @property
    def student(self) -> str:
        return next(name for name in self.inputs if name.startswith("student"))

    @property
    def teacher(self) -> str | None:
        return next((name for name in self.inputs if name.startswith("teacher")), None)

    @property
    def reduces(self) -> bool:
        return "reduction" in inspect.signature(self.function).parameters

    def call(self, mask: Tensor | None = None, reduction: str = "none", **inputs: Tensor) -> Tensor:
        """The function, per position where it can."""
        own = {"reduction": reduction} if self.reduces else {}
        return self.function(*(self.inputs | inputs).values(), **self.options, mask=mask, **own)

    def to(self, convert: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {key: convert(value) if value.is_floating_point() else value for key, value in self.inputs.items()}

    def rows(self, index: Any) -> dict[str, Tensor]:
        return {key: value[index] for key, value in self.inputs.items()}


def make(name: str, shape: tuple[int, ...] = (5,), classes: int = 6, ignored: bool = True) -> Case:
    cls, function = LOSSES[name]
    loss = cls(**CONSTRUCT.get(name, lambda classes: {})(classes))
    rng = torch.Generator().manual_seed(1)
    inputs: dict[str, Tensor] = {}
    for parameter in inspect.signature(loss.forward).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.name == "labels":
            labels = torch.randint(classes, shape, generator=rng)
            if ignored and labels.numel() > 1:
                labels.view(-1)[1] = IGNORE_INDEX
            inputs["labels"] = labels
        else:
            inputs[parameter.name] = 2 * torch.randn(*shape, classes, generator=rng, dtype=torch.float64)
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = {key: getattr(loss, key) for key in keywords if key not in ("mask", "reduction")}
    return Case(loss, function, options, inputs)


def gradient(value: Tensor, source: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), source)[0]


# ---- what is public ------------------------------------------------------------------------------------------------


def test_every_loss_is_found_and_exported() -> None:
    assert len(NAMES) >= 9
    for name, (cls, function) in LOSSES.items():
        assert getattr(kdkit.losses, name) is cls
        assert getattr(kdkit.losses, function.__name__) is function
        assert {name, function.__name__} <= set(kdkit.losses.__all__)


@EVERY
def test_it_is_documented(name: str) -> None:
    cls, function = LOSSES[name]
    assert cls.reference
    for documented in (cls, function):
        text = inspect.getdoc(documented)
        assert text
        assert text.splitlines()[0].endswith(".")
        assert "Args:" in text
    for section in (".. math::", "Returns:", "Raises:", "Source:"):
        assert section in (function.__doc__ or ""), section


@EVERY
def test_the_constructor_takes_the_options_of_the_function(name: str) -> None:
    case = make(name)
    constructor = set(inspect.signature(type(case.loss)).parameters) - {"pair", "reduction"}
    assert constructor == set(case.options)
    defaults = inspect.signature(case.function).parameters
    for key, parameter in inspect.signature(type(case.loss)).parameters.items():
        if key in defaults and key not in CONSTRUCT.get(name, lambda classes: {})(2):
            assert parameter.default == defaults[key].default, key
    assert all(f"{key}=" in repr(case.loss) for key in case.options if key not in dict(case.loss.named_buffers()))


# ---- values --------------------------------------------------------------------------------------------------------


@EVERY
def test_module_equals_function(name: str) -> None:
    case = make(name)
    mask = torch.tensor([True, True, True, False, True])
    for reduction in ("mean", "sum", "none") if case.reduces else ("",):
        if case.reduces:
            case.loss.reduction = reduction
        assert torch.equal(case.loss(*case.inputs.values(), mask=mask), case.call(mask, reduction))


@EVERY
def test_compute_equals_forward_with_the_mask(name: str) -> None:
    case = make(name)
    mask = torch.tensor([True, False, True, True, True])
    pair = case.loss.pairs[0] if case.loss.pairs else "unused"

    def output(side: str | None) -> ModelOutput:
        values = torch.zeros(5, 6) if side is None else case.inputs[side]
        return ModelOutput(values, {pair: values})

    teacher = output(case.teacher) if case.teacher else None
    step = StepOutputs(output(case.student), teacher, case.inputs.get("labels"), mask)
    values = case.loss.compute(step)
    assert torch.equal(values, case.call(mask))
    if values.ndim == 0:
        return
    assert values.shape == mask.shape
    counted = step.positions() if case.loss.counts == "positions" else step.labelled()
    assert bool((values[~counted] == 0).all())
    assert torch.allclose(values.sum() / counted.sum(), case.call(mask, "mean"))


@EVERY
def test_needs_match_the_inputs(name: str) -> None:
    case = make(name)
    assert case.loss.needs_teacher == (case.teacher is not None)
    assert case.loss.needs_labels == ("labels" in case.inputs)
    if case.loss.needs_teacher and not case.loss.pairs:
        with pytest.raises(InputError, match=rf"^{name}: out.teacher must be .+, got None; "):
            case.loss.compute(StepOutputs(ModelOutput(torch.zeros(2, 3)), labels=torch.tensor([0, 1])))
    if case.loss.needs_labels and not case.loss.pairs:
        logits = ModelOutput(torch.zeros(2, 3))
        with pytest.raises(InputError, match=rf"^{name}: out.labels must be .+, got None; "):
            case.loss.compute(StepOutputs(logits, logits))


def _law(case: Case, temperature: float = 1.0) -> Tensor:
    return torch.softmax(case.inputs[case.student] / temperature, dim=-1)


def _ce_at_equality(case: Case) -> Tensor:
    return torch.stack(
        [-law.log()[y] if y >= 0 else law.new_zeros(()) for law, y in zip(_law(case), case.inputs["labels"])]
    )


def _nkd_at_equality(case: Case) -> Tensor:
    gamma, values = case.loss.gamma, []
    for law, y in zip(_law(case), case.inputs["labels"].tolist()):
        rest = torch.cat([law[:y], law[y + 1 :]])
        rest = rest / rest.sum()
        values.append(-law[y] * law[y].log() - gamma * (rest * rest.log()).sum() if y >= 0 else law.new_zeros(()))
    return torch.stack(values)


def _nd_at_equality(case: Case) -> Tensor:
    labels = case.inputs["labels"]
    cosine = torch.cosine_similarity(case.inputs[case.student], case.options["class_means"][labels.clamp(min=0)])
    return torch.where(labels >= 0, 1 - cosine, 0.0)


def _transport_at_equality(case: Case) -> Tensor:
    law = _law(case, case.loss.temperature)
    cost = torch.cdist(law, law, p=1)
    plan = torch.exp(-cost / case.loss.epsilon)
    for _ in range(getattr(case.loss, "iterations", 5000)):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    return (plan * cost).sum() * getattr(case.loss, "scale", 1 / len(law))


AT_EQUALITY: dict[str, Callable[[Case], Tensor]] = {
    "CELoss": _ce_at_equality,
    "NKDLoss": _nkd_at_equality,
    "NDLoss": _nd_at_equality,
    "SinkhornLoss": _transport_at_equality,
    "SinKDReleasedLoss": _transport_at_equality,
}
"""Documented values at student = teacher of the losses that are not zero there."""


@EVERY
def test_value_at_student_equal_to_teacher(name: str) -> None:
    case = make(name)
    student = case.inputs[case.student]
    values = case.call(**({case.teacher: student} if case.teacher else {}))
    expected = AT_EQUALITY[name](case) if name in AT_EQUALITY else torch.zeros(5, dtype=torch.float64)
    assert torch.allclose(values, expected, rtol=1e-9, atol=1e-9)


@EVERY
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    case = make(name)
    order = torch.tensor([3, 0, 4, 1, 2])
    values, shuffled = case.call(), case.call(**case.rows(order))
    assert torch.allclose(values if values.ndim == 0 else values[order], shuffled, rtol=1e-9)


@EVERY
def test_masking_equals_dropping_whatever_the_masked_rows_hold(name: str) -> None:
    case = make(name)
    mask = torch.tensor([True, True, False, True, False])
    filled = case.to(lambda value: value.index_fill(0, torch.tensor([2, 4]), math.nan))
    filled[case.student].requires_grad_()
    values, dropped = case.call(mask, **filled), case.call(**case.rows(mask))
    assert torch.allclose(values if values.ndim == 0 else values[mask], dropped, rtol=1e-9)
    slope = gradient(values, filled[case.student])
    assert bool((slope[~mask] == 0).all())
    assert bool(slope.isfinite().all())
    if case.reduces:
        for reduction in ("mean", "sum"):
            assert torch.allclose(case.call(mask, reduction, **filled), case.call(None, reduction, **case.rows(mask)))


@EVERY
def test_reductions_agree(name: str) -> None:
    case = make(name)
    if not case.reduces:
        assert case.call().ndim == 0
        return
    values = case.call()
    count = int((case.inputs["labels"] != IGNORE_INDEX).sum()) if "labels" in case.inputs else len(values)
    assert torch.allclose(case.call(reduction="sum"), values.sum())
    assert torch.allclose(case.call(reduction="mean"), values.sum() / count)


@EVERY
def test_text_is_a_batch_of_positions(name: str) -> None:
    text = make(name, (2, 3))
    flat = {key: value.flatten(0, 1) for key, value in text.inputs.items()}
    mask = torch.tensor([[True, True, False], [True, False, True]])
    values = text.call(mask)
    assert values.shape in ((), (2, 3))
    assert torch.allclose(values.flatten(), text.call(mask.flatten(), **flat).flatten())


# ---- gradients -----------------------------------------------------------------------------------------------------


@EVERY
def test_gradient_equals_finite_differences(name: str) -> None:
    case = make(name)
    mask = torch.tensor([True, True, True, False, True])
    for reduction in ("none", "mean") if case.reduces else ("",):
        student = case.inputs[case.student].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: case.call(mask, reduction, **{case.student: x}), student)  # noqa: B023


@EVERY
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    case = make(name)
    if case.teacher is None:
        return
    teacher = case.inputs[case.teacher].clone().requires_grad_()
    assert not case.call(**{case.teacher: teacher}).requires_grad
    student = case.inputs[case.student].clone().requires_grad_()
    case.call(**{case.student: student, case.teacher: teacher}).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert bool((student.grad != 0).any())


@EVERY
def test_a_second_derivative_is_right_or_raises(name: str) -> None:
    case = make(name, (3,), 4)
    student = case.inputs[case.student].clone().requires_grad_()
    try:
        assert torch.autograd.gradgradcheck(lambda x: case.call(**{case.student: x}), student)
    except NotImplementedError as error:
        assert "has no second derivative" in str(error)
    (slope,) = torch.autograd.grad(case.call(**{case.student: student}).sum(), student, create_graph=True)
    assert slope.requires_grad


# ---- precision and extremes ----------------------------------------------------------------------------------------


@EVERY
def test_bfloat16_inputs_are_computed_in_float32(name: str) -> None:
    case = make(name)
    half = case.to(lambda value: value.bfloat16())
    wide = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    for inputs in (half, wide):
        inputs[case.student].requires_grad_()
    low, full = case.call(**half), case.call(**wide)
    assert low.dtype == full.dtype == torch.float32
    assert torch.allclose(low, full, rtol=1e-5, atol=1e-6)
    slope = gradient(low, half[case.student])
    assert slope.dtype == torch.bfloat16
    assert torch.allclose(slope.float(), gradient(full, wide[case.student]), rtol=2**-7, atol=1e-4)
    exact = case.call(**{key: v.double() if v.is_floating_point() else v for key, v in half.items()})
    assert torch.allclose(full.double(), exact, rtol=1e-4, atol=1e-5)


@EVERY
def test_autocast_changes_nothing(name: str) -> None:
    case = make(name)
    inputs = case.to(lambda value: value.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.call(**inputs)
    assert torch.equal(inside, case.call(**inputs))


def _large(values: Tensor) -> Tensor:
    return values.sign() * 1e4


def _dominated(values: Tensor) -> Tensor:
    return values.index_fill(-1, torch.tensor([0]), 300.0)


@EVERY
@pytest.mark.parametrize("extreme", [_large, _dominated, lambda values: 40 * values, torch.zeros_like])
@pytest.mark.parametrize("shape", [(5,), (1,)])
@pytest.mark.parametrize("classes", [6, 2])
def test_extremes_are_finite(name: str, extreme: Callable[[Tensor], Tensor], shape: tuple[int], classes: int) -> None:
    case = make(name, shape, classes)
    for side in filter(None, (case.student, case.teacher)):
        inputs = case.to(lambda value: value.float())
        inputs[side] = extreme(inputs[side])
        inputs[case.student] = inputs[case.student].clone().requires_grad_()
        value = case.call(**inputs)
        assert bool(value.isfinite().all())
        assert bool(gradient(value, inputs[case.student]).isfinite().all())


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_banned_classes(name: str, dtype: torch.dtype) -> None:
    case = make(name)
    if not case.student.endswith("logits"):
        return
    if "labels" in case.inputs:
        case.inputs["labels"].clamp_(max=2)
    for sides in ((case.student, case.teacher), (case.student,), (case.teacher,)):
        inputs = case.to(lambda value: value.to(dtype))
        for side in filter(None, sides):
            inputs[side] = inputs[side].index_fill(-1, torch.tensor([3, 5]), -math.inf)
        inputs[case.student] = inputs[case.student].clone().requires_grad_()
        value = case.call(**inputs)
        assert not bool(value.isnan().any()), sides
        slope = gradient(value, inputs[case.student])
        if bool(value.isfinite().all()):
            assert bool(slope.isfinite().all()), sides
        if len(sides) == 2:
            assert bool(value.isfinite().all())
            assert bool((slope[..., [3, 5]] == 0).all())


@EVERY
def test_a_diverged_network_shows_as_nan(name: str) -> None:
    case = make(name)
    for side in filter(None, (case.student, case.teacher)):
        assert case.call(
            reduction="mean", **{side: case.inputs[side].index_fill(0, torch.tensor([0]), math.nan)}
        ).isnan()


@EVERY
def test_a_batch_without_positions_is_exactly_zero(name: str) -> None:
    case = make(name)
    masks = [torch.zeros(5, dtype=torch.bool)]
    batches: list[dict[str, Tensor]] = [{}]
    if "labels" in case.inputs:
        masks.append(torch.ones(5, dtype=torch.bool))
        batches.append({"labels": torch.full((5,), IGNORE_INDEX)})
    for mask, changed in zip(masks, batches):
        for reduction in ("mean", "sum", "none") if case.reduces else ("",):
            student = case.inputs[case.student].clone().requires_grad_()
            value = case.call(mask, reduction, **{case.student: student}, **changed)
            assert bool((value == 0).all())
            assert bool((gradient(value, student) == 0).all())


@EVERY
def test_an_empty_batch_is_zero(name: str) -> None:
    case = make(name)
    assert case.call(None, "mean", **case.rows(slice(0, 0))).item() == 0


# ---- compilation ---------------------------------------------------------------------------------------------------


@EVERY
def test_it_compiles_into_one_graph(name: str) -> None:
    if name in NO_FULL_GRAPH:
        pytest.skip(NO_FULL_GRAPH[name])
    case = make(name)
    mask = torch.tensor([True, True, True, False, True])
    student = case.inputs[case.student].clone().requires_grad_()
    inputs = (case.inputs | {case.student: student}).values()
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")(*inputs, mask=mask)
    eager = case.loss(*inputs, mask=mask)
    assert torch.allclose(compiled, eager)
    assert torch.allclose(gradient(compiled, student), gradient(eager, student))


# ---- bad input -----------------------------------------------------------------------------------------------------


def refused(case: Case, argument: str, pattern: str, mask: Tensor | None = None, **inputs: Any) -> None:
    text = rf"^{case.function.__name__}: {argument} must be .*{pattern}.*, got .+"
    with pytest.raises(InputError, match=text):
        case.call(mask, "mean", **inputs)


@EVERY
def test_wrong_tensors_are_refused(name: str) -> None:
    case = make(name)
    for side in filter(None, (case.student, case.teacher)):
        refused(case, side, "float of shape", **{side: torch.zeros(5, 6, dtype=torch.int64)})
        refused(case, side, "float of shape", **{side: torch.zeros(6)})
        refused(case, side, "float of shape", **{side: [[0.0, 1.0]]})
    if case.teacher:
        refused(case, case.teacher, f"of the shape of {case.student}, ", **{case.teacher: torch.zeros(5, 7)})
    refused(case, "mask", re.escape("bool of shape [5]"), torch.ones(5))
    refused(case, "mask", re.escape("bool of shape [5]"), torch.ones(4, dtype=torch.bool))


@EVERY
def test_wrong_labels_are_refused(name: str) -> None:
    case = make(name)
    if "labels" not in case.inputs:
        return
    form = re.escape("int64 of shape [5] or float of shape [5, 6]")
    refused(case, "labels", form, labels=torch.zeros(5, dtype=torch.int32))
    refused(case, "labels", form, labels=torch.zeros(4, dtype=torch.int64))
    refused(case, "labels", form, labels=torch.zeros(5, 5))
    for label in (6, -1):
        with pytest.raises(InputError, match=rf"labels must be in \[0, 6\) or -100 .+, got {label}; "):
            case.call(labels=torch.tensor([0, 1, label, 3, 4]))


@EVERY
def test_wrong_options_are_refused(name: str) -> None:
    case = make(name)
    if case.reduces:
        with pytest.raises(InputError, match=r"reduction must be one of 'mean', 'sum', 'none', got 'avg'"):
            case.call(reduction="avg")
        with pytest.raises(InputError, match=rf"^{name}: reduction must be one of .+, got 'batchmean'"):
            type(case.loss)(**CONSTRUCT.get(name, lambda classes: {})(6), reduction="batchmean")
    if "temperature" not in case.options:
        return
    for temperature in (0, -1.0, math.nan, math.inf, True, "2"):
        case.options["temperature"] = temperature
        refused(case, "temperature", "a positive number")
        with pytest.raises(InputError, match=rf"^{name}: temperature must be a positive number, got"):
            type(case.loss)(temperature=temperature)


# ---- temperatures as tensors ---------------------------------------------------------------------------------------


@EVERY
def test_a_temperature_may_be_a_tensor(name: str) -> None:
    case = make(name)
    annotation = str(inspect.signature(case.function).parameters.get("temperature", ""))
    if "Temperature" not in annotation:
        return
    case.options["temperature"] = 3.0
    plain = case.call()
    case.options["temperature"] = torch.tensor(3.0, dtype=torch.float64)
    assert torch.allclose(case.call(), plain)
    case.options["temperature"] = torch.tensor([3.0, 3.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    values = case.call()
    case.options["temperature"] = 1.0
    assert torch.allclose(values[2], case.call()[2])
    assert torch.allclose(values[3], plain[3])
    for wrong in (torch.ones(4), torch.ones(5, dtype=torch.int64)):
        case.options["temperature"] = wrong
        refused(case, "temperature", "a positive number or a float tensor of shape")
    case.options["temperature"] = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    refused(case, "temperature", "positive everywhere")
