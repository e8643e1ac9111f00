"""Docstrings with the vectors of a reference encoder; and the task that compares with them, from end to end."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from kdkit.data import LabelledTextSpec, StdlibDocstrings
from kdkit.errors import ConfigError, DataError, InputError
from kdkit.models import export_student, hf_sentence_encoder, load_weights
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks import Embedding

WORDS = ("opens", "closes", "reads", "writes", "file", "socket", "stream", "buffer")
SIZES: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 14,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder with its tokenizer, and a standard library of 30 files with three docstrings each."""
    from transformers import BertTokenizerFast

    folder, root = tmp_path / "encoder", tmp_path / "python"
    torch.manual_seed(0)
    hf_sentence_encoder(**SIZES).save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *WORDS]))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(folder)
    root.mkdir()
    for i in range(30):
        text = [" ".join(WORDS[(i * j + j * k + i) % 8] for j in range(10)) + f" the {i} {k}" for k in range(3)]
        code = f'"""{text[0]}"""\nclass A:\n    """{text[1]}"""\n    def f(self):\n        """{text[2]}"""\n'
        (root / f"module_{i}.py").write_text(code)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return folder


def test_targets_are_the_vectors_of_the_reference(reference: Path) -> None:
    data = StdlibDocstrings(reference=str(reference), context=24)
    assert sum(data.size(split) for split in ("train", "val", "test")) == 90
    encoder = hf_sentence_encoder(pretrained=str(reference)).eval()
    for batch in data.batches("test", 4, train=False):
        with torch.no_grad():
            torch.testing.assert_close(batch["target"], encoder(batch["input_ids"], batch["attention_mask"]))
        assert bool((batch["label"] == -100).all())
    again = StdlibDocstrings(reference=str(reference), context=24)
    assert again.fingerprint == data.fingerprint
    torch.manual_seed(1)
    hf_sentence_encoder(**SIZES).save_pretrained(reference)
    assert StdlibDocstrings(reference=str(reference), context=24).fingerprint != data.fingerprint
    few = StdlibDocstrings(reference=str(reference), context=24, texts=40)
    assert sum(few.size(split) for split in ("train", "val", "test")) == 40
    with pytest.raises(InputError, match="texts must be at least 30, got 5"):
        StdlibDocstrings(reference=str(reference), texts=5)
    with pytest.raises(ConfigError, match="run `pip install no-such-encoder`"):
        StdlibDocstrings(reference="package:no_such_encoder/model")


def test_metrics() -> None:
    random = torch.Generator().manual_seed(0)
    vectors, targets = torch.randn(9, 4, generator=random), torch.randn(9, 4, generator=random)
    task = Embedding(LabelledTextSpec(0, 14, 24, 0, measure="cosine"))
    halves = [task.metrics(), task.metrics()]
    for half, rows in enumerate((slice(5, 9), slice(0, 5))):
        batch = {"target": targets[rows], "index": torch.arange(9)[rows]}
        halves[half].update(StepOutputs(ModelOutput(vectors[rows])), batch)
    merged = task.metrics()
    merged.merge([half.state() for half in halves])
    found = merged.compute()
    cosines = torch.cosine_similarity(vectors, targets)
    pairs = [(i, j) for i in range(9) for j in range(i + 1, 9)]
    ranks = [[float(torch.cosine_similarity(side[i], side[j], 0)) for i, j in pairs] for side in (vectors, targets)]
    assert found["cosine"] == pytest.approx(float(cosines.mean()), rel=1e-5)
    assert found["spearman"] == pytest.approx(float(spearmanr(*ranks).statistic), rel=1e-5)
    with pytest.raises(DataError, match="needs at least 3 texts, got 0"):
        task.metrics().compute()


def test_a_student_is_counted_checked_and_exported(reference: Path, tmp_path: Path) -> None:
    data = StdlibDocstrings(reference=str(reference), context=24)
    task = Embedding(data.spec)
    network = task.wrap(hf_sentence_encoder(pretrained=str(reference), keep_layers=[1]), name="student").eval()
    network.tap({"embedding": "embedding"})
    batch = next(iter(data.batches("train", 4, train=False)))
    output = task.forward(network, batch)
    torch.testing.assert_close(output.features["embedding"], output.logits)
    task.check_outputs(output, output, batch)
    with pytest.raises(ConfigError, match=r"the student must give vectors \[4, 8\], as wide as the targets"):
        task.check_outputs(ModelOutput(torch.zeros(4, 6)), None, batch)
    assert {name: int(value) for name, value in task.counts(batch).items()} == {"positions": 4, "labelled": 0}
    network.tap({})
    example = task.inputs(network, task.example(batch))
    facts = export_student(network, tmp_path / "out", spec=data.spec, example=example)
    assert "AutoModel.from_pretrained" in facts["snippet"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 1
    again = task.wrap(hf_sentence_encoder(pretrained=str(reference), keep_layers=[0]))
    load_weights(again.module, tmp_path / "out")
    torch.testing.assert_close(task.forward(again.eval(), batch).logits, output.logits)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="task embedding needs texts with target vectors"):
        Embedding(LabelledTextSpec(2, 14, 24, 0))
    task = Embedding(LabelledTextSpec(0, 40, 24, 0, measure="cosine"))
    with pytest.raises(ConfigError, match="the student has vocab_size=14 and the data need 40"):
        task.wrap(hf_sentence_encoder(**SIZES), name="student")
    with pytest.raises(ConfigError, match="normalization and input_size are for images"):
        task.wrap(hf_sentence_encoder(**SIZES), input_size=4)
