"""The families: what a subclass gets for its one method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdkit.errors import InputError
from kdkit.losses import DistillationLoss, FeatureLoss, LabelledLogitLoss, LogitLoss, Probe
from kdkit.losses._ops import reduce
from kdkit.outputs import ModelOutput, StepOutputs


class SquaredFeatures(FeatureLoss):
    """Mean squared distance."""

    def loss(self, *tensors: Tensor, **options: Any) -> Tensor:
        student, teacher = tensors
        return reduce((student - teacher).square().sum(-1), options["mask"], options["reduction"], "squared")


class Remembering(DistillationLoss):
    """Keeps one number per training sample."""

    late_buffers = ("memory",)
    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.empty(0))

    def prepare(self, probe: Probe) -> None:
        self.memory = torch.zeros(probe.num_samples)


def step(**changes: Any) -> StepOutputs:
    logits = torch.zeros(2, 3)
    student = ModelOutput(logits, {"deep": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    teacher = ModelOutput(logits, {"deep": torch.zeros(2, 2)})
    return StepOutputs(**({"student": student, "teacher": teacher} | changes))


def test_a_feature_loss_reads_its_pair() -> None:
    loss = SquaredFeatures("deep")
    assert loss.pairs == ("deep",)
    assert loss.compute(step()).tolist() == [5.0, 25.0]
    assert loss.compute(step(mask=torch.tensor([False, True]))).tolist() == [0.0, 25.0]
    assert loss(*(torch.ones(2, 2), torch.zeros(2, 2))).item() == 2


def test_what_a_family_needs() -> None:
    assert (LogitLoss.needs_labels, LogitLoss.counts) == (False, "positions")
    assert (LabelledLogitLoss.needs_labels, LabelledLogitLoss.counts) == (True, "labelled")
    assert DistillationLoss.needs_teacher
    assert DistillationLoss().pairs == ()


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match=r"^SquaredFeatures: out.teacher must be the teacher's output, got None; give"):
        SquaredFeatures("deep").compute(step(teacher=None))
    with pytest.raises(NotImplementedError, match="DistillationLoss must define compute"):
        DistillationLoss().compute(step())
    with pytest.raises(NotImplementedError, match="LogitLoss must define loss"):
        LogitLoss().compute(step())
    with pytest.raises(InputError, match=r"^LogitLoss: reduction must be one of 'mean', 'sum', 'none', got 'avg'$"):
        LogitLoss("avg")  # type: ignore[arg-type]


def test_late_buffers_load_before_and_after_prepare() -> None:
    probe = Probe(step(), num_samples=3, num_classes=3)
    full = Remembering()
    full.prepare(probe)
    full.memory[:] = torch.tensor([1.0, 2.0, 3.0])
    early, late = Remembering(), Remembering()
    late.prepare(probe)
    for fresh in (early, late):
        fresh.load_state_dict(full.state_dict())
        assert fresh.memory.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(RuntimeError, match="Missing key"):
        Remembering().load_state_dict({})


def test_options_are_read_at_the_call() -> None:
    loss = SquaredFeatures("deep")
    assert loss.options("pair", mask=None) == {"pair": "deep", "mask": None}
    loss.pair = "other"
    assert loss.options("pair") == {"pair": "other"}
    assert repr(loss) == "SquaredFeatures(reduction='mean', pair='other')"
