"""Causal language modelling: documents stay apart, the shift, metrics, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.data._base import ImageSpec, TextSpec
from kdkit.errors import ConfigError, DataError
from kdkit.models import hf_causal_lm
from kdkit.models._language import LanguageNetwork
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks import CausalLM
from kdkit.tasks.causal_lm import document_mask

SPEC = TextSpec(vocab_size=30, context=16, pad_token_id=0, eos_token_id=1)
TASK = CausalLM(SPEC)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
MODELS = pytest.mark.parametrize("options", [LLAMA, GPT2], ids=["llama", "gpt2"])


def batch() -> dict[str, Tensor]:
    """Two rows: documents of 7 and 9 tokens; a document of 12 tokens and padding."""
    ids = torch.randint(2, 30, (2, 16), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[1] * 7 + [2] * 9, [3] * 12 + [0] * 4])
    positions = torch.tensor([[*range(7), *range(9)], [*range(12), *range(4)]])
    ids = ids.masked_fill(documents == 0, 0)
    labels = ids.masked_fill(documents == 0, -100)
    sizes = torch.full_like(ids, 2).masked_fill(documents == 0, 0)
    return {
        "input_ids": ids,
        "labels": labels,
        "document_ids": documents,
        "position_ids": positions,
        "num_bytes": sizes,
        "index": torch.arange(2),
    }


def network(options: dict[str, Any], **more: Any) -> LanguageNetwork:
    torch.manual_seed(0)
    wrapped = TASK.wrap(hf_causal_lm(vocab_size=30, **options, **more))
    return wrapped.eval()


def step(student: Tensor, teacher: Tensor | None = None, data: dict[str, Tensor] | None = None) -> StepOutputs:
    other = None if teacher is None else ModelOutput(teacher)
    return StepOutputs(ModelOutput(student), other, *TASK.targets(data or batch()))


def test_document_mask() -> None:
    mask = document_mask(torch.tensor([[1, 1, 2, 0, 0]]))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == expected


@MODELS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_document_does_not_see_another(options: dict[str, Any], attention: str) -> None:
    model = network(options, attn_implementation=attention)
    data = batch()
    logits = TASK.forward(model, data).logits
    assert logits.shape == (2, 15, 30)
    changed = {**data, "input_ids": data["input_ids"].clone()}
    changed["input_ids"][0, :7] = 5
    other = TASK.forward(model, changed).logits
    assert torch.equal(logits[0, 7:], other[0, 7:])
    assert not torch.allclose(logits[0, :7], other[0, :7])
    assert torch.isfinite(logits).all()


@MODELS
def test_packed_equals_alone(options: dict[str, Any]) -> None:
    model = network(options)
    data = batch()
    logits = TASK.forward(model, data).logits
    for row, start, stop in ((0, 0, 7), (0, 7, 15), (1, 0, 12)):
        alone = model.module(data["input_ids"][row : row + 1, start:stop], use_cache=False).logits[0]
        torch.testing.assert_close(logits[row, start:stop], alone, rtol=1e-5, atol=1e-6)


def test_half_precision_and_autocast() -> None:
    model = network(LLAMA)
    reference = TASK.forward(model, batch()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(TASK.forward(model, batch()).logits).all()
    for attention in ("sdpa", "eager"):
        half = network(LLAMA, attn_implementation=attention).to(torch.bfloat16)
        torch.testing.assert_close(TASK.forward(half, batch()).logits.float(), reference, rtol=0.1, atol=0.02)


def test_targets_are_shifted_and_stay_inside_documents() -> None:
    data = batch()
    labels, mask = TASK.targets(data)
    assert labels is not None
    assert mask is not None
    assert labels.shape == mask.shape == (2, 15)
    assert mask[0].tolist() == [True] * 6 + [False] + [True] * 8
    assert mask[1].tolist() == [True] * 11 + [False] * 4
    assert torch.equal(labels[mask], data["input_ids"][:, 1:][mask])
    assert (labels[~mask] == -100).all()
    counts = {name: int(value) for name, value in TASK.counts(data).items()}
    assert counts == {"positions": 25, "labelled": 25}


def test_prompts_do_not_count() -> None:
    data = batch()
    data["labels"][0, :4] = -100
    _, mask = TASK.targets(data)
    assert mask is not None
    assert mask[0].tolist() == [False] * 3 + [True] * 3 + [False] + [True] * 8


def test_metrics_against_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 15, 30, generator=generator) for _ in range(2))
    data = batch()
    labels, mask = TASK.targets(data)
    assert labels is not None
    assert mask is not None
    metrics = TASK.metrics()
    metrics.ROWS = 4  # several chunks
    metrics.update(step(student, teacher), data)
    values = metrics.compute()
    p, q, y = student[mask].softmax(-1), teacher[mask].softmax(-1), labels[mask]
    nll = float(F.cross_entropy(student[mask], y))
    expected = {
        "nll": nll,
        "perplexity": math.exp(nll),
        "bits_per_byte": nll * 25 / math.log(2) / 50,
        "accuracy": float((p.argmax(-1) == y).float().mean()),
        "agreement": float((p.argmax(-1) == q.argmax(-1)).float().mean()),
        "kl_to_teacher": float((q * (q / p).log()).sum(-1).mean()),
    }
    assert values == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    metrics = TASK.metrics()
    metrics.update(step(torch.zeros(2, 15, 30)), batch())
    values = metrics.compute()
    assert values["perplexity"] == pytest.approx(30, rel=1e-5)
    assert "agreement" not in values


def test_ranks_merge_to_the_same_numbers() -> None:
    student = torch.randn(2, 15, 30)
    whole, parts = TASK.metrics(), [TASK.metrics(), TASK.metrics()]
    whole.update(step(student, student), batch())
    for row, metrics in enumerate(parts):
        data = {name: value[row : row + 1] for name, value in batch().items()}
        metrics.update(step(student[row : row + 1], student[row : row + 1], data), data)
    merged = TASK.metrics()
    merged.merge([metrics.state() for metrics in parts])
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-6)
    assert merged.compute()["agreement"] == 1.0


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"needs tokens to predict, this split has none"):
        TASK.metrics().compute()


def test_tokens_out_of_range_are_refused_in_any_batch() -> None:
    with pytest.raises(DataError, match=r"labels must lie in 0..4 .*, got .*; use the tokenizer"):
        TASK.metrics().update(step(torch.zeros(2, 15, 5)), batch())


def test_an_overflowing_perplexity_is_infinite() -> None:
    metrics = TASK.metrics()
    metrics.merge([{**metrics.state(), "tokens": 1.0, "nll": 1e4}])
    assert metrics.compute()["perplexity"] == math.inf


def test_refusals() -> None:
    data = batch()
    good = ModelOutput(torch.zeros(2, 15, 30))
    TASK.check_outputs(good, good, data)
    with pytest.raises(
        ConfigError, match=r"student's vocabulary has 30 tokens and the teacher's 31, more than padding explains"
    ):
        TASK.check_outputs(good, ModelOutput(torch.zeros(2, 15, 31)), data)
    with pytest.raises(
        ConfigError, match=r"teacher must give logits \[2, 15, V\] for rows of 16 tokens, got \[2, 30\]"
    ):
        TASK.check_outputs(good, ModelOutput(torch.zeros(2, 30)), data)
    with pytest.raises(DataError, match=r"labels must lie in 0..4 \(or be -100 for none\), got"):
        TASK.check_outputs(ModelOutput(torch.zeros(2, 15, 5)), None, data)
    with pytest.raises(ConfigError, match=r"task causal_lm needs text, and these data are images"):
        CausalLM(ImageSpec(2, 1, 8, (0.5,), (0.5,)))
    with pytest.raises(ConfigError, match=r"the student knows 20 tokens and the data 30"):
        TASK.wrap(hf_causal_lm(vocab_size=20, **LLAMA), name="student")
    with pytest.raises(ConfigError, match=r"the teacher takes 8 positions and a row of the data has 16 tokens"):
        TASK.wrap(hf_causal_lm(vocab_size=30, **{**LLAMA, "max_position_embeddings": 8}), name="teacher")
    with pytest.raises(ConfigError, match=r"normalization and input_size are for images, got 'data' and None"):
        TASK.wrap(hf_causal_lm(vocab_size=30, **LLAMA), normalization="data")
    flex = hf_causal_lm(vocab_size=30, **LLAMA)
    flex.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"uses attention 'flash_attention_2', which can not keep packed documents"):
        TASK.wrap(flex)


def test_example_and_throughput() -> None:
    one = TASK.example(batch())
    assert all(value.shape[0] == 1 for value in one.values())
    assert TASK.throughput(batch()) == 32
    assert TASK.better({"perplexity": 3.0}, {"perplexity": 4.0})
    assert not TASK.better({"perplexity": math.nan}, {"perplexity": 4.0})
