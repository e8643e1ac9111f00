"""Classification of texts: padding changes nothing, metrics of GLUE, refusals, losses of tokens on encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor, nn

from kdkit.data._base import ImageSpec, LabelledTextSpec, TextSpec
from kdkit.errors import ConfigError, DataError
from kdkit.losses import AttentionKLLoss, HiddenCosineLoss, HiddenMSELoss, MiniLMLoss
from kdkit.models import hf_text_classifier
from kdkit.models._texts import TextNetwork
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks import CausalLM, Classification, SequenceClassification

SPEC = LabelledTextSpec(num_classes=2, vocab_size=30, context=12, pad_token_id=0, class_names=("no", "yes"))
TASK = SequenceClassification(SPEC)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {"model_type": "bert", **SIZES, "max_position_embeddings": 12}
DISTILBERT = {"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 4}


def batch() -> dict[str, Tensor]:
    """Three texts of 12, 7 and 5 tokens."""
    ids = torch.randint(1, 30, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.tensor([[12], [7], [5]])).long()
    kinds = (torch.arange(12) > 3).long() * mask
    labels = torch.tensor([0, 1, 1])
    names = ("input_ids", "attention_mask", "token_type_ids", "label", "index")
    return dict(zip(names, (ids * mask, mask, kinds, labels, torch.arange(3))))


def network(options: dict[str, Any] = BERT, **more: Any) -> TextNetwork:
    torch.manual_seed(0)
    return TASK.wrap(hf_text_classifier(num_classes=2, vocab_size=30, **options, **more)).eval()


def step(
    student: ModelOutput, teacher: ModelOutput | None = None, data: dict[str, Tensor] | None = None
) -> StepOutputs:
    data = data or batch()
    labels, mask = TASK.targets(data)
    return StepOutputs(student, teacher, labels, mask, extra=TASK.extra(data))


@pytest.mark.parametrize("options", [BERT, DISTILBERT], ids=["bert", "distilbert"])
def test_a_text_gets_the_same_logits_with_and_without_padding(options: dict[str, Any]) -> None:
    wrapped = network(options)
    whole = TASK.forward(wrapped, batch()).logits
    assert whole.shape == (3, 2)
    for row, length in enumerate((12, 7, 5)):
        alone = {name: value[row : row + 1] for name, value in batch().items()}
        alone = {name: value[:, :length] if value.ndim > 1 else value for name, value in alone.items()}
        torch.testing.assert_close(TASK.forward(wrapped, alone).logits, whole[row : row + 1])


def test_kinds_of_tokens_go_to_networks_that_know_them() -> None:
    assert set(TASK.inputs(network(), batch())) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(TASK.inputs(network(DISTILBERT), batch())) == {"input_ids", "attention_mask"}
    assert set(TASK.inputs(network(type_vocab_size=1), batch())) == {"input_ids", "attention_mask"}
    with torch.no_grad():
        first = TASK.forward(network(), batch()).logits
        swapped = TASK.forward(network(), {**batch(), "token_type_ids": 1 - batch()["token_type_ids"]}).logits
    assert not torch.allclose(first, swapped)


def test_the_example_has_no_padding() -> None:
    rows = {name: value.flip(0) for name, value in batch().items()}
    assert {name: tuple(value.shape) for name, value in TASK.example(rows).items()} == {
        "input_ids": (1, 5),
        "attention_mask": (1, 5),
        "token_type_ids": (1, 5),
        "label": (1,),
        "index": (1,),
    }


def test_metrics_against_scikit_learn() -> None:
    random = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(40, 2, generator=random), torch.randint(0, 2, (40,), generator=random)
    labels[3] = -100
    halves = [TASK.metrics(), TASK.metrics()]
    for half, metrics in enumerate(halves):
        rows = slice(20 * half, 20 * half + 20)
        metrics.update(StepOutputs(ModelOutput(logits[rows]), ModelOutput(-logits[rows]), labels[rows]), {})
    merged = TASK.metrics()
    merged.merge([metrics.state() for metrics in halves])
    found = merged.compute()
    kept, choice = labels != -100, logits.argmax(1)
    assert found["f1"] == pytest.approx(f1_score(labels[kept], choice[kept]))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(labels[kept], choice[kept]))
    assert found["accuracy"] == pytest.approx(float((choice == labels)[kept].float().mean()))
    assert found["agreement"] == 0.0
    assert {"nll", "ece", "brier", "kl_to_teacher"} <= set(found)


def test_metrics_of_a_network_that_always_says_the_same() -> None:
    metrics = TASK.metrics()
    metrics.update(step(ModelOutput(torch.tensor([[1.0, 0.0]] * 3))), batch())
    found = metrics.compute()
    assert found["matthews"] == 0.0 and found["f1"] == 0.0 and found["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="an evaluation needs texts with labels, this split has none"):
        TASK.metrics().compute()


@pytest.mark.parametrize(("measure", "classes"), [("accuracy", 3), ("matthews", 3), ("f1", 2)])
def test_the_data_say_what_is_better(measure: str, classes: int) -> None:
    task = SequenceClassification(LabelledTextSpec(classes, 30, 12, 0, measure=measure))
    assert task.primary == measure
    assert task.better({measure: 0.6}, {measure: 0.5})


def test_refusals() -> None:
    images, text = ImageSpec(10, 1, 8, (0.5,), (0.25,)), TextSpec(30, 12, 0, 1)
    for wrong, way in ((images, "these data are images; use task=classification"), (text, "use task=causal_lm")):
        with pytest.raises(ConfigError, match=f"task sequence_classification needs texts with labels, .*{way}"):
            SequenceClassification(wrong)
    for task in (Classification, CausalLM):
        with pytest.raises(ConfigError, match="use task=sequence_classification"):
            task(SPEC)
    with pytest.raises(ConfigError, match=r"the measure of the data must be .* got 'f1' for 3 classes"):
        SequenceClassification(LabelledTextSpec(3, 30, 12, 0, measure="f1"))
    small = hf_text_classifier(num_classes=2, vocab_size=20, **BERT)
    with pytest.raises(ConfigError, match=r"the student knows 20 tokens and the data 30; set model.vocab_size"):
        TASK.wrap(small, name="student")
    short = hf_text_classifier(num_classes=2, vocab_size=30, **{**BERT, "max_position_embeddings": 8})
    with pytest.raises(ConfigError, match="takes 8 positions and the longest text of the data may have 12"):
        TASK.wrap(short)
    with pytest.raises(ConfigError, match="normalization and input_size are for images"):
        TASK.wrap(small, input_size=4)


def test_check_outputs() -> None:
    good, wide, flat = (ModelOutput(torch.zeros(*shape)) for shape in ((3, 2), (3, 4), (3, 12, 2)))
    TASK.check_outputs(good, good, batch())
    with pytest.raises(ConfigError, match=r"the teacher has 4 classes and the data 2; set model.num_classes"):
        TASK.check_outputs(good, wide, batch())
    with pytest.raises(ConfigError, match=r"the student must give logits \[3, C\] for 3 texts, got \[3, 12, 2\]"):
        TASK.check_outputs(flat, None, batch())
    with pytest.raises(DataError, match=r"labels must lie in 0\.\.1"):
        TASK.check_outputs(good, None, {**batch(), "label": torch.tensor([0, 1, 2])})


# ---- features ------------------------------------------------------------------------------------------------------


def outputs(layers: dict[str, str], **more: Any) -> ModelOutput:
    wrapped = network(**more)
    wrapped.tap(layers)
    return TASK.forward(wrapped, batch())


@pytest.mark.parametrize("options", [BERT, DISTILBERT], ids=["bert", "distilbert"])
def test_hidden_states_are_those_of_transformers(options: dict[str, Any]) -> None:
    wrapped = network(options)
    layers = {"0": "hidden_states.0", "1": "hidden_states.1", "2": "hidden_states.2", "last": "hidden_states.-1"}
    wrapped.tap({**layers, "pooled": "penultimate"})
    inputs = TASK.inputs(wrapped, batch())
    features = TASK.forward(wrapped, batch()).features
    states = wrapped.module(**inputs, output_hidden_states=True).hidden_states
    for name, place in (("0", 0), ("1", 1), ("2", 2), ("last", 2)):
        torch.testing.assert_close(features[name], states[place])
    head = wrapped.head
    assert isinstance(head, nn.Linear) and head.out_features == 2
    torch.testing.assert_close(head(features["pooled"]), TASK.forward(wrapped, batch()).logits)


@pytest.mark.parametrize("loss", [HiddenMSELoss(["h"]), HiddenCosineLoss(["h"])], ids=["mse", "cosine"])
def test_padding_has_no_part_in_losses_of_hidden_states(loss: Any) -> None:
    inside = batch()["attention_mask"].bool()
    student, teacher = torch.randn(3, 12, 6), torch.randn(3, 12, 6)
    noisy = torch.where(inside[..., None], teacher, 1e3 * torch.randn(3, 12, 6))
    clean, spoilt = (
        loss.compute(
            step(ModelOutput(torch.zeros(3, 2), {"h": student}), ModelOutput(torch.zeros(3, 2), {"h": values}))
        )
        for values in (teacher, noisy)
    )
    torch.testing.assert_close(clean, spoilt)
    alone = loss([student[2:, :5]], [teacher[2:, :5]])
    torch.testing.assert_close(clean[2], alone)


def test_losses_of_attention_on_encoders() -> None:
    layers = {"queries": "queries.-1", "keys": "keys.-1", "values": "values.-1", "attention_1": "attentions.-1"}
    student = outputs(layers, attn_implementation="eager")
    teacher = outputs(layers, options={**BERT, "hidden_size": 32}, attn_implementation="eager")
    assert student.features["attention_1"].shape == (3, 4, 12, 12)
    for loss in (MiniLMLoss(relation_heads=4), AttentionKLLoss()):
        values = loss.compute(step(student, teacher))
        assert values.shape == (3,) and bool((values > 0).all())
        torch.testing.assert_close(loss.compute(step(student, student)), torch.zeros(3))
    noisy = ModelOutput(teacher.logits, {name: value.clone() for name, value in teacher.features.items()})
    for name in ("queries", "keys", "values"):
        noisy.features[name][2, 5:] = 100.0
    loss = MiniLMLoss(relation_heads=4)
    torch.testing.assert_close(loss.compute(step(student, noisy)), loss.compute(step(student, teacher)))
