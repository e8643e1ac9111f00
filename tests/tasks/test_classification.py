"""Classification: wrapper, metrics beside references, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from kdkit.data._base import ImageSpec, TextSpec
from kdkit.errors import ConfigError, DataError
from kdkit.models import small_cnn
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks import Classification

SPEC = ImageSpec(7, 1, 8, (0.5,), (0.25,))
TASK = Classification(SPEC)


def batch(size: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 7, (size,), generator=generator)
    return {"image": torch.rand(size, 1, 8, 8, generator=generator), "label": labels, "index": torch.arange(size)}


def logits(size: int = 40, seed: int = 2) -> Tensor:
    return 2 * torch.randn(size, 7, generator=torch.Generator().manual_seed(seed))


def measure(student: Tensor, labels: Tensor | None, teacher: Tensor | None = None, **kwargs: Any) -> dict[str, float]:
    metrics = TASK.metrics()
    other = None if teacher is None else ModelOutput(teacher)
    metrics.update(StepOutputs(ModelOutput(student), other, labels, **kwargs), {})
    return metrics.compute()


def test_flow() -> None:
    network = TASK.wrap(small_cnn(4, num_classes=7), name="s").eval()
    data = batch()
    out = TASK.forward(network, data)
    TASK.check_outputs(out, out, data)
    labels, mask = TASK.targets(data)
    assert labels is data["label"]
    assert mask is None
    assert TASK.throughput(data) == 40
    one = TASK.example(data)
    assert one["image"].shape == (1, 1, 8, 8)
    torch.testing.assert_close(TASK.forward(network, one).logits, out.logits[:1])


def test_metrics_against_torchmetrics_and_formulas() -> None:
    student, teacher, labels = logits(), logits(seed=3), batch()["label"]
    values = measure(student, labels, teacher)
    p, q = student.softmax(1), teacher.softmax(1)
    one_hot = torch.eye(7)[labels]
    expected = {
        "accuracy": multiclass_accuracy(student, labels, 7, average="micro"),
        "top5": multiclass_accuracy(student, labels, 7, average="micro", top_k=5),
        "nll": torch.nn.functional.cross_entropy(student, labels),
        "brier": (p - one_hot).square().sum(1).mean(),
        "ece": multiclass_calibration_error(p, labels, 7, n_bins=15, norm="l1"),
        "agreement": (student.argmax(1) == teacher.argmax(1)).float().mean(),
        "kl_to_teacher": (q * (q.log() - p.log())).sum(1).mean(),
    }
    assert set(values) == {*expected, "adaptive_ece"}
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), abs=1e-5), name
    assert 0 <= values["adaptive_ece"] <= 1


def test_unlabelled_images_enter_agreement_alone() -> None:
    student, teacher, labels = logits(), logits(seed=3), batch()["label"].clone()
    labels[::2] = -100
    values = measure(student, labels, teacher)
    only = measure(student[1::2], labels[1::2])
    assert {name: values[name] for name in only} == pytest.approx(only)
    assert values["agreement"] == pytest.approx(measure(student, batch()["label"], teacher)["agreement"])


def test_masked_images_do_not_count() -> None:
    student, labels = logits(), batch()["label"]
    mask = torch.arange(40) < 10
    values = measure(student, labels, student, mask=mask)
    expected = measure(student[:10], labels[:10], student[:10])
    assert values == pytest.approx(expected)


def test_soft_labels() -> None:
    student, labels = logits(), batch()["label"]
    soft = torch.eye(7)[labels]
    assert measure(student, soft) == pytest.approx(measure(student, labels))
    smooth = 0.9 * soft + 0.1 / 7
    values = measure(student, smooth)
    assert values["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(student, smooth)), abs=1e-5)
    assert values["accuracy"] == measure(student, labels)["accuracy"]


def test_few_classes_have_no_top5() -> None:
    metrics = TASK.metrics()
    metrics.update(StepOutputs(ModelOutput(torch.randn(4, 5)), None, torch.zeros(4, dtype=torch.int64)), {})
    assert "top5" not in metrics.compute()


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, -1e4, float("-inf")], [0.0, 1.0, float("-inf")]])
    metrics = TASK.metrics()
    metrics.update(StepOutputs(ModelOutput(student), ModelOutput(student), torch.tensor([0, 1])), {})
    values = metrics.compute()
    assert all(math.isfinite(value) for value in values.values())
    assert values["kl_to_teacher"] == 0.0


def test_batches_and_ranks_merge_to_the_same_numbers() -> None:
    student, teacher, labels = logits(), logits(seed=3), batch()["label"]
    whole = measure(student, labels, teacher)
    collectors = [TASK.metrics(), TASK.metrics()]
    for index, part in enumerate(torch.arange(40).split(7)):
        out = StepOutputs(ModelOutput(student[part]), ModelOutput(teacher[part]), labels[part])
        collectors[index % 2].update(out, {})
    merged = TASK.metrics()
    merged.merge([collector.state() for collector in collectors])
    assert merged.compute() == pytest.approx(whole)
    bins = merged.extras()["reliability"]
    assert sum(bins["count"]) == 40
    assert set(bins) == {"confidence", "accuracy", "count"}
    assert len(bins["confidence"]) == 15


def test_a_rank_without_batches_merges() -> None:
    full, empty = TASK.metrics(), TASK.metrics()
    full.update(StepOutputs(ModelOutput(logits()), None, batch()["label"]), {})
    expected = full.compute()
    full.merge([full.state(), empty.state()])
    assert full.compute() == pytest.approx(expected)


def test_no_labels_at_all() -> None:
    with pytest.raises(DataError, match=r"needs images with labels, this split has none"):
        measure(logits(), torch.full((40,), -100))
    assert TASK.metrics().extras() == {}


def test_labels_out_of_range_are_refused_in_any_batch() -> None:
    with pytest.raises(DataError, match=r"labels must lie in 0..6 .*, got 9; number the classes from 0"):
        measure(logits(), torch.full((40,), 9))


def test_half_precision_logits() -> None:
    student, labels = logits().bfloat16(), batch()["label"]
    assert measure(student, labels) == pytest.approx(measure(student.float(), labels))


def test_refusals() -> None:
    data = batch(4)
    good = ModelOutput(torch.zeros(4, 7))
    TASK.check_outputs(good, None, data)
    with pytest.raises(ConfigError, match=r"student has 7 classes and the teacher 10; they must be the same classes"):
        TASK.check_outputs(good, ModelOutput(torch.zeros(4, 10)), data)
    with pytest.raises(ConfigError, match=r"networks have 10 classes and the data 7; set model.num_classes"):
        TASK.check_outputs(ModelOutput(torch.zeros(4, 10)), None, data)
    with pytest.raises(ConfigError, match=r"teacher must give logits \[B, C\] for classification, got \[4, 7, 2, 2\]"):
        TASK.check_outputs(good, ModelOutput(torch.zeros(4, 7, 2, 2)), data)
    with pytest.raises(DataError, match=r"labels must lie in 0..6 \(or be -100 for none\), got 7"):
        TASK.check_outputs(good, None, {**data, "label": torch.tensor([0, -100, 7, 1])})
    with pytest.raises(DataError, match=r"soft labels must be \[B, 7\] for 7 classes, got \[4, 3\]"):
        TASK.check_outputs(good, None, {**data, "label": torch.zeros(4, 3)})
    with pytest.raises(ConfigError, match=r"task classification needs images, and these data are text"):
        Classification(TextSpec(10, 8, 0, 1))
    with pytest.raises(ConfigError, match=r"input_size must be at least 1 pixel, got 0"):
        TASK.wrap(small_cnn(4, num_classes=7), input_size=0)


def test_better() -> None:
    assert TASK.better({"accuracy": 0.5}, None)
    assert TASK.better({"accuracy": 0.6}, {"accuracy": 0.5})
    assert not TASK.better({"accuracy": 0.5}, {"accuracy": 0.5})
    assert not TASK.better({"accuracy": math.nan}, {"accuracy": 0.5})
    assert TASK.better({"accuracy": 0.1}, {"accuracy": math.nan})
