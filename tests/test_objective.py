"""Terms times weights, divided once."""

from __future__ import annotations

import pytest
import torch

from kdkit.errors import ConfigError
from kdkit.losses import CELoss, DistillationLoss, KLLoss
from kdkit.objective import Objective
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.schedules import Linear


def step(batch: int = 6, progress: float = 0.0) -> StepOutputs:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(batch) % 3
    labels[::3] = -100
    student = torch.randn(batch, 3, generator=generator, requires_grad=True)
    return StepOutputs(
        ModelOutput(student), ModelOutput(torch.randn(batch, 3, generator=generator)), labels, None, progress
    )


class BatchMean(DistillationLoss):
    """A relational loss: the mean over the batch of squared logits."""

    def compute(self, out: StepOutputs) -> torch.Tensor:
        return out.student.logits.square().mean()


def test_each_term_is_a_mean_over_what_it_counts() -> None:
    out = step()
    total, terms = Objective({"ce": CELoss(), "kl": KLLoss()}, {"ce": 2.0, "kl": 0.5})(out)
    valid = out.labels != -100
    ce = torch.nn.functional.cross_entropy(out.student.logits[valid], out.labels[valid])
    kl = KLLoss()(out.student.logits, out.teacher.logits)
    torch.testing.assert_close(terms["ce"], ce.detach())
    torch.testing.assert_close(terms["kl"], kl.detach())
    torch.testing.assert_close(total, 2.0 * ce + 0.5 * kl)


def test_micro_batches_with_global_counts_add_up_to_the_whole() -> None:
    whole = step(12)
    losses = {"ce": CELoss(), "kl": KLLoss(), "mean": BatchMean()}
    objective = Objective(losses, dict.fromkeys(losses, 1.0))
    expected, expected_terms = objective(whole)
    totals = Objective.local_counts(whole)
    parts = []
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
        part = StepOutputs(
            ModelOutput(whole.student.logits[rows]), ModelOutput(whole.teacher.logits[rows]), whole.labels[rows]
        )
        parts.append(objective(part, totals))
    torch.testing.assert_close(sum(part[0] for part in parts), expected)
    for name in losses:
        torch.testing.assert_close(sum(part[1][name] for part in parts), expected_terms[name])


def test_without_any_label_cross_entropy_is_zero_with_zero_gradient() -> None:
    out = step()
    out.labels = torch.full_like(out.labels, -100)
    total, _ = Objective({"ce": CELoss()}, {"ce": 1.0})(out)
    total.backward()
    assert total.item() == 0.0
    assert torch.equal(out.student.logits.grad, torch.zeros_like(out.student.logits))


def test_weights_may_be_schedules_and_weight_zero_gives_zero_gradient() -> None:
    objective = Objective({"kl": KLLoss()}, {"kl": Linear(0.0, 1.0)})
    assert objective.weights(0.25) == {"kl": 0.25}
    start = step(progress=0.0)
    total, _ = objective(start)
    total.backward()
    assert total.item() == 0.0
    assert not start.student.logits.grad.any()
    half, full = objective(step(progress=0.5))[0], objective(step(progress=1.0))[0]
    torch.testing.assert_close(half * 2, full)


def test_names_of_losses_and_weights_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"weights.ndk has no loss of that name; did you mean 'nkd'\?"):
        Objective({"nkd": KLLoss()}, {"nkd": 1.0, "ndk": 1.0})
    with pytest.raises(ConfigError, match=r"loss 'nkd' has no weight; set weights.nkd=1.0"):
        Objective({"nkd": KLLoss()}, {})
    with pytest.raises(ConfigError, match="needs at least one loss"):
        Objective({}, {})
