"""Language models with two tokenizers, or with padded vocabularies."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import TextFiles, match_vocabularies
from kdkit.data._base import Batch, TextSpec
from kdkit.errors import ConfigError, KdkitWarning
from kdkit.losses import GOLDLoss, ULDLoss, js_loss, uld_loss
from kdkit.losses._base import Probe
from kdkit.models._language import LanguageNetwork
from kdkit.objective import Objective
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks import CausalLM
from kdkit.tasks._tokenizers import common_width

SPEC = TextSpec(vocab_size=30, context=5, pad_token_id=0, eos_token_id=1)


class Echo(nn.Module):
    """Logits that depend on the token and on its position alone."""

    def __init__(self, vocabulary: int, width: int, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocabulary, width, generator=rng))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        assert attention_mask.shape[-1] == input_ids.shape[1]
        return self.table[input_ids] + 0.1 * position_ids.unsqueeze(-1)


def batch() -> Batch:
    ids = torch.tensor([[1, 4, 5, 6, 1], [1, 7, 8, 1, 0]])
    documents = torch.tensor([[1] * 5, [1] * 4 + [0]])
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(documents == 0, -100),
        "document_ids": documents,
        "position_ids": torch.arange(5).expand(2, 5),
        "index": torch.arange(2),
    }


def paired() -> Batch:
    return {
        **batch(),
        "groups": torch.tensor([[0, 1, 1, 2, 3], [0, 1, 2, 3, 0]]),
        "teacher_input_ids": torch.tensor([[2, 9, 8, 2], [2, 3, 3, 2]]),
        "teacher_document_ids": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]]),
        "teacher_position_ids": torch.arange(4).expand(2, 4),
        "teacher_groups": torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]),
    }


def two() -> CausalLM:
    teacher = TextSpec(vocab_size=12, context=5, pad_token_id=0, eos_token_id=2)
    return CausalLM(TextSpec(vocab_size=30, context=5, pad_token_id=0, eos_token_id=1, teacher=teacher))


def test_each_network_reads_its_own_tokens() -> None:
    task = two()
    student, teacher = LanguageNetwork(Echo(30, 30)), LanguageNetwork(Echo(12, 12))
    teacher.reads_teacher_tokens = True
    data = paired()
    assert task.forward(student, data).logits.shape == (2, 4, 30)
    said = task.forward(teacher, data).logits
    assert torch.allclose(said[0, 1], teacher.module.table[9] + 0.1)  # type: ignore[index]
    assert said.shape == (2, 3, 12)
    task.check_outputs(task.forward(student, data), ModelOutput(said), data)
    with pytest.raises(ConfigError, match=r"the teacher must give logits \[2, 3, V\] for rows of 4 tokens"):
        task.check_outputs(task.forward(student, data), ModelOutput(torch.zeros(2, 4, 12)), data)


def test_on_its_own_rows_the_teacher_reads_those() -> None:
    teacher = LanguageNetwork(Echo(30, 30))
    teacher.reads_teacher_tokens = True
    assert CausalLM(SPEC).forward(teacher, batch()).logits.shape == (2, 4, 30)


def test_the_alignment_is_shifted_as_the_outputs_are() -> None:
    alignment = two().alignment(paired())
    assert alignment is not None
    assert alignment.student_groups.tolist() == [[1, 1, 2, 3], [1, 2, 3, 0]]
    assert alignment.student_tokens.tolist() == [[4, 5, 6, 1], [7, 8, 1, 0]]
    assert alignment.teacher_groups.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert alignment.teacher_tokens.tolist() == [[9, 8, 2], [3, 3, 2]]
    assert CausalLM(SPEC).alignment(batch()) is None


def test_groups_are_counted_beside_the_positions() -> None:
    task, data = two(), paired()
    counts = {name: int(value) for name, value in task.counts(data).items()}
    assert counts == {"positions": 7, "labelled": 7, "groups": 6}
    labels, mask = task.targets(data)
    out = StepOutputs(ModelOutput(torch.zeros(2, 4, 30)), labels=labels, mask=mask, alignment=task.alignment(data))
    assert {name: int(value) for name, value in Objective.local_counts(out).items()} == counts


def test_the_metrics_of_two_vocabularies_are_the_students_own() -> None:
    assert CausalLM(SPEC).one_vocabulary
    assert not two().one_vocabulary


# ---- one vocabulary under other names ------------------------------------------------------------------------------


def renamed(tokenizer: Any) -> Any:
    """The same tokenizer with its ids in reverse order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    last = len(tokenizer) - 1
    state["model"]["vocab"] = {token: last - index for token, index in state["model"]["vocab"].items()}
    for entry in state["added_tokens"]:
        entry["id"] = last - entry["id"]
    backend = Tokenizer.from_str(json.dumps(state))
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_a_vocabulary_under_other_names_gives_the_divergence_of_one(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{i} the quick brown fox {i * 7} größe" * 3}) for i in range(30)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    path = str(tmp_path / "texts.jsonl")
    own = TextFiles(path, vocab_size=290, context=32)
    data = TextFiles(path, tokenizer=own.spec.tokenizer, context=32, teacher_tokenizer=renamed(own.spec.tokenizer))
    assert data.spec.teacher is not None
    size = data.spec.vocab_size
    rows = next(iter(data.batches("train", 8, train=False)))
    task = CausalLM(data.spec)
    student, teacher = LanguageNetwork(Echo(size, size, 1)), LanguageNetwork(Echo(size, size, 2))
    teacher.reads_teacher_tokens = True
    labels, mask = task.targets(rows)
    said, taught = task.forward(student, rows), task.forward(teacher, rows)
    out = StepOutputs(said, taught, labels, mask, alignment=task.alignment(rows))
    shared = torch.from_numpy(match_vocabularies(data.spec.tokenizer, data.spec.teacher.tokenizer))
    assert len(shared) == size
    loss = GOLDLoss()
    loss.prepare(Probe(out, 8, size, shared=shared))
    objective = Objective({"gold": loss, "uld": ULDLoss()}, {"gold": 1.0, "uld": 1.0})
    _, terms = objective(out, task.counts(rows))
    back = taught.logits.flip(-1)
    assert torch.allclose(terms["gold"], js_loss(said.logits, back, mask=mask), rtol=1e-5)
    assert torch.allclose(terms["uld"], uld_loss(said.logits, back, mask=mask), rtol=1e-5)


# ---- padding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(30, 32), (32, 30), (32, 64)])
def test_padding_is_cut_off_and_said_once(widths: tuple[int, int]) -> None:
    task, data = CausalLM(SPEC), batch()
    networks = [LanguageNetwork(Echo(30, width)) for width in widths]
    student, teacher = (task.forward(network, data) for network in networks)
    kept = [output.logits.clone() for output in (student, teacher)]
    with pytest.warns(KdkitWarning, match=rf"{widths[0]} entries and the teacher's {widths[1]}, for a tokenizer of 30"):
        task.check_outputs(student, teacher, data)
    for output, before in zip((student, teacher), kept, strict=True):
        assert torch.equal(output.logits, before[..., : min(widths)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = [task.forward(network, data) for network in networks]
        task.check_outputs(*again, data)
    assert [output.logits.shape[-1] for output in again] == [min(widths)] * 2


@pytest.mark.parametrize("widths", [(30, 31), (30, 400), (30, 24), (33, 30)])
def test_what_is_no_padding_is_refused(widths: tuple[int, int]) -> None:
    outputs = [ModelOutput(torch.zeros(2, 4, width)) for width in widths]
    text = (
        rf"the student's vocabulary has {widths[0]} tokens and the teacher's {widths[1]}, more than padding explains; "
        r"name the teacher's tokenizer with data.teacher_tokenizer=… and choose losses that go across tokenizers \("
    )
    with pytest.raises(ConfigError, match=text):
        CausalLM(SPEC).check_outputs(*outputs, batch())


def test_known_paddings() -> None:
    for entries, widths in ((151665, (151936, 152064)), (50257, (50257, 50304)), (32000, (32000, 32064))):
        spec = TextSpec(vocab_size=entries, context=8, pad_token_id=0, eos_token_id=0)
        assert common_width(widths, spec) == min(widths)
    spec = TextSpec(vocab_size=32000, context=8, pad_token_id=0, eos_token_id=0)
    assert common_width((32000, 50304), spec) is None
