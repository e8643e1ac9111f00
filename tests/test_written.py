"""Students that write their own training text, from the command line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit._files import read_jsonl
from kdkit.cli import main
from kdkit.engine.callbacks import Recorder

TINY = [
    "experiment=stdlib_lm",
    "data.max_bytes=60000",
    "data.vocab_size=300",
    "data.context=48",
    "student.model.hidden_size=16",
    "student.model.intermediate_size=32",
    "teacher.model.hidden_size=40",
    "teacher.model.intermediate_size=64",
    "teacher.train.max_steps=2",
    "loss=[ce,js]",
    "strategy=on_policy",
    "strategy.prompt_tokens=40",
    "engine.batch_size=4",
    "engine.max_steps=6",
    "engine.log_every=1",
    "engine.progress=none",
    "engine.baseline=false",
    "engine.report=false",
    "logger=[]",
]
CACHED = [word for word in TINY if not word.startswith("teacher.")] + ["teacher=cached", "teacher.cached.folder=kept"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["distill", *TINY, "run_dir=whole"]) == 0
    record = Recorder.on_train

    def press(self: Recorder, entry: dict) -> None:
        record(self, entry)
        if self.network == "student" and entry["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_train", press)
    assert main(["distill", *TINY, "run_dir=parted"]) == 130
    monkeypatch.setattr(Recorder, "on_train", record)
    assert main(["distill", "resume=parted"]) == 0
    whole, parted = (load_file(Path(name) / "student" / "model.safetensors") for name in ("whole", "parted"))
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
    lines = [read_jsonl(f"{name}/metrics.jsonl") for name in ("whole", "parted")]
    logs = [[line for line in run if line["event"] == "train"] for run in lines]
    assert [line["written"] for line in logs[0]] == [line["written"] for line in logs[1]]
    assert 0 < sum(line["written"] for line in logs[0]) < 6
    for line in logs[0]:
        assert (line["written_tokens"] > 0) == (line["written"] > 0)
        assert (line["terms"]["ce"] == 0) == (line["written"] > 0)  # its own words are no labels
        assert line["terms"]["js"] > 0


@pytest.mark.slow
def test_the_teachers_words_teach_without_any_other_term_and_spare_the_baseline() -> None:
    seqkd = [*TINY, "strategy=seqkd", "strategy.prompt_tokens=40", "engine.max_steps=2"]
    assert main(["distill", *seqkd, "loss=[ce]", "run_dir=words"]) == 0
    lines = [line for line in read_jsonl("words/metrics.jsonl") if line["event"] == "train"]
    assert all(line["written"] == 1 and line["terms"]["ce"] > 0 for line in lines)
    board = [word for word in [*TINY, "engine.max_steps=2"] if not word.startswith("loss=")]
    assert main(["compare", *board, "losses=[ce,js]", "seeds=1", "workers=1", "run_dir=board"]) == 0
    written = {
        method: [
            line.get("written") for line in read_jsonl(f"board/cells/{method}-s0/metrics.jsonl") if "terms" in line
        ]
        for method in ("ce", "js")
    }
    assert written["ce"] == [None, None] and None not in written["js"]
    assert "ce on the data's own text" in " ".join(json.loads(Path("board/compare.json").read_text())["notes"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["distill", *CACHED], "that teacher=cached was never asked about"),
        (["distill", *TINY, "strategy=seqkd", "teacher.ensemble=2"], "needs one teacher that does not learn"),
        (["distill", *TINY, "loss=[ce]"], "no loss learns from a teacher; add one, like 'loss=[ce,js]'"),
        (["distill", *TINY, "loss=[ce,crd]"], "loss.crd remembers each sample of the data"),
        (["distill", *TINY, "strategy.shar=0.1"], "did you mean 'share'"),
        (["train", "experiment=stdlib_lm", "strategy=on_policy"], "kdkit train has no teacher"),
        (["distill", "strategy=on_policy"], "task classification has none; use task=causal_lm"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("runs").exists()
