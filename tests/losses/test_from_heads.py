"""Terms from hidden states and heads: every loss that says it can be had so, beside the same loss on logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import kdkit.losses
from kdkit.losses import CELoss, FDivergenceLoss, JSLoss, KDLoss, KLLoss, TopKLoss
from kdkit.losses._base import DistillationLoss
from kdkit.losses._from_heads import HeadTerm, head_term, reads_logits
from kdkit.objective import Objective
from kdkit.outputs import LinearHead, ModelOutput, SparseLogits, StepOutputs

CASES: list[tuple[str, dict[str, Any]]] = [
    ("KLLoss", {"temperature": 2.0}),
    ("KLLoss", {"temperature": (2.0, 3.0)}),
    ("ReverseKLLoss", {"temperature": 1.5}),
    ("KDLoss", {"temperature": 3.0}),
    ("KDLoss", {"temperature": (2.0, 1.0)}),
    ("JSLoss", {"beta": 0.3}),
    ("JSLoss", {"beta": 0.3, "rescaled": True}),
    ("JSLoss", {"beta": 0.0, "rescaled": True}),
    ("JSLoss", {"beta": 1.0, "rescaled": True}),
    ("SkewKLLoss", {"alpha": 0.2}),
    ("SkewReverseKLLoss", {"alpha": 0.2, "temperature": 2.0}),
    ("JeffreysLoss", {}),
    ("TotalVariationLoss", {}),
    ("HellingerLoss", {}),
    ("AlphaDivergenceLoss", {"alpha": 0.7}),
    ("ChiSquareLoss", {"temperature": 4.0}),
    ("ChiSquareLoss", {"kind": "neyman", "temperature": 4.0}),
    ("FDivergenceLoss", {"f": "le_cam"}),
    ("FDivergenceLoss", {"f": "js", "parameter": 0.2}),
    ("FDivergenceLoss", {"f": "skew_kl", "parameter": 0.2}),
    ("CELoss", {}),
]


def networks(dtype: torch.dtype = torch.float64, cap: float | None = None) -> tuple[LinearHead, LinearHead, Tensor]:
    """A student and a teacher of 3 x 7 positions and 19 words, and labels of which some do not count."""
    rng = torch.Generator().manual_seed(0)

    def head(width: int, bias: bool) -> LinearHead:
        hidden, weight = (torch.randn(*shape, width, generator=rng).to(dtype) for shape in ((3, 7), (19,)))
        return LinearHead(hidden, weight, torch.randn(19, generator=rng).to(dtype) if bias else None, cap, 0.7)

    student, teacher = head(5, bias=True), head(4, bias=False)
    for leaf in (student.hidden, student.weight, student.bias):
        assert leaf is not None
        leaf.requires_grad_()
    labels = torch.randint(0, 19, (3, 7), generator=rng)
    labels[0, :3] = -100
    return student, teacher, labels


def leaves(head: LinearHead) -> list[Tensor]:
    assert head.bias is not None
    return [head.hidden, head.weight, head.bias]


def both(
    losses: dict[str, DistillationLoss],
    weights: dict[str, float],
    *,
    sparse: SparseLogits | None = None,
    mask: Tensor | None = None,
    sample_weights: Tensor | None = None,
    totals: dict[str, float] | None = None,
    cap: float | None = None,
) -> list[tuple[Tensor, dict[str, Tensor], list[Tensor]]]:
    """Total, terms and gradients of an objective, on logits and without."""
    student, teacher, labels = networks(cap=cap)
    counted = labels != -100 if mask is None else mask
    found = []
    for fused in (False, True):
        objective = Objective(losses, weights)
        if fused:
            said = ModelOutput(teacher.placeholder(), sparse=sparse, head=None if sparse else teacher)
            outputs = ModelOutput(student.placeholder(), head=student), said
        else:
            outputs = ModelOutput(student.logits()), ModelOutput(teacher.logits(), sparse=sparse)
        out = StepOutputs(*outputs, labels, counted, weights=sample_weights)
        total, terms = objective(out, totals)
        found.append((total, terms, list(torch.autograd.grad(total, leaves(student)))))
    return found


def agree(found: list[tuple[Tensor, dict[str, Tensor], list[Tensor]]]) -> None:
    (total, terms, gradients), (fused, its, others) = found
    torch.testing.assert_close(fused.double(), total.double(), rtol=1e-6, atol=1e-9)
    assert list(its) == list(terms)
    for name, value in terms.items():
        torch.testing.assert_close(its[name].double(), value.double(), rtol=1e-6, atol=1e-9)
    for mine, plain in zip(others, gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_a_loss_is_the_same_without_logits(name: str, options: dict[str, Any]) -> None:
    loss = getattr(kdkit.losses, name)(**options)
    assert head_term(loss) is not None
    agree(both({"term": loss}, {"term": 0.7}))


@pytest.mark.parametrize("rest", ["bucket", "renormalise", "none"])
def test_entries_of_a_cache(rest: str) -> None:
    _, teacher, _ = networks()
    law = (teacher.logits() / 2).log_softmax(-1)
    best, ids = law.topk(6)
    rest_of = (1 - best.exp().sum(-1)).log()
    loss = TopKLoss(k=5, rest=rest, temperature=2.0)  # type: ignore[arg-type]
    agree(
        both({"topk": loss, "ce": CELoss()}, {"topk": 1.0, "ce": 0.5}, sparse=SparseLogits(ids, best, rest_of, 19, 2.0))
    )


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.0, 0.5), (1.0, 0.0), (-1.0, 0.5)])
def test_cross_entropy_shares_the_pass(weights: tuple[float, float]) -> None:
    losses: dict[str, DistillationLoss] = {"kd": KDLoss(2.0), "ce": CELoss(), "js": JSLoss()}
    chosen = {"kd": weights[0], "ce": weights[1], "js": 2.0}
    agree(both(losses, chosen))
    agree(both(losses, chosen, sample_weights=torch.tensor([1.0, 0.0, 2.5], dtype=torch.float64)))
    agree(both(losses, chosen, totals={"positions": 40.0, "labelled": 31.0}, cap=3.0))


def test_positions_without_a_label_count_for_the_divergence_alone() -> None:
    everywhere = torch.ones(3, 7, dtype=torch.bool)
    agree(both({"kl": KLLoss(), "ce": CELoss()}, {"kl": 1.0, "ce": 1.0}, mask=everywhere))


def test_nothing_counts() -> None:
    found = both({"kl": KLLoss(), "ce": CELoss()}, {"kl": 1.0, "ce": 1.0}, mask=torch.zeros(3, 7, dtype=torch.bool))
    agree(found)
    assert found[1][0] == 0 and all(not gradient.any() for gradient in found[1][2])


def test_what_cannot_be_had_without_logits() -> None:
    assert head_term(KLLoss(torch.tensor(2.0))) is None  # type: ignore[arg-type]
    assert head_term(CELoss(label_smoothing=0.1)) is None
    assert head_term(FDivergenceLoss(f=lambda ratio: ratio * ratio.log())) is None
    objective = Objective({"ce": CELoss(), "nkd": kdkit.losses.NKDLoss()}, {"ce": 1.0, "nkd": 1.0})
    assert objective.without_logits() == "loss.nkd reads logits"


class Doubled(KLLoss):
    """Computes something else than the class that says how it is computed."""

    def compute(self, out: StepOutputs) -> Tensor:
        return 2 * super().compute(out)


class Told(Doubled):
    def head_term(self) -> HeadTerm | None:
        return HeadTerm.divergence("kl", self.temperature, 2.0)


class ReadsLogits(kdkit.losses.FitNetsLoss):
    def compute(self, out: StepOutputs) -> Tensor:
        return super().compute(out) + out.student.logits.sum(-1)


def test_a_subclass_is_not_taken_at_its_parents_word() -> None:
    assert head_term(Doubled()) is None
    agree(both({"kl": Told()}, {"kl": 1.0}))
    assert reads_logits(ReadsLogits("a")) and not reads_logits(kdkit.losses.FitNetsLoss("a"))
