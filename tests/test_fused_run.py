"""Training without logits, from end to end: the same students, and what stands in its way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdkit._run import heads
from kdkit.cli import main

pytestmark = pytest.mark.slow

TINY = [
    "experiment=stdlib_lm",
    "data.max_bytes=60000",
    "data.vocab_size=300",
    "data.context=64",
    "teacher.model.hidden_size=40",
    "teacher.model.intermediate_size=64",
    "teacher.train.max_steps=20",
    "student.model.hidden_size=16",
    "student.model.intermediate_size=32",
    "engine.batch_size=4",
    "engine.max_steps=6",
    "engine.log_every=1",
    "engine.progress=none",
    "engine.baseline=false",
    "logger=[]",
]
SAID = "no batch of logits is held"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    """Exit status of a command."""
    try:
        return main(list(arguments)) or 0
    except SystemExit as stop:
        return int(stop.code or 0)


def rows(path: str) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((Path(path) / "results.json").read_text())["rows"]}


@pytest.mark.parametrize(
    "settings",
    [
        ["loss=[ce,kl]"],
        ["loss=[ce,kd,js]", "weights.ce=0", "engine.accumulation=2"],
        ["loss=[ce,reverse_kl,hidden_mse]"],
        ["strategy=on_policy", "loss=[js]"],
    ],
    ids=lambda settings: "+".join(settings),
)
def test_the_student_is_the_same(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("true", "false"):
        assert run("distill", *TINY, *settings, f"task.fused_head={name}", f"run_dir=fused-{name}") == 0
        assert (SAID in capsys.readouterr().out) == (name == "true")
    fused, dense = rows("fused-true"), rows("fused-false")
    assert list(fused) == list(dense)
    for name, row in dense.items():
        assert row["flops"] == fused[name]["flops"]
        for metric, value in row["metrics"].items():
            assert fused[name]["metrics"][metric] == pytest.approx(value, rel=2e-4, abs=2e-5), (name, metric)


def test_a_cached_teacher_and_large_batches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("cache", *TINY, "cache.k=8", "cache.folder=kept") == 0
    cached = [*TINY, "loss=[ce,topk]", "loss.topk.k=8", "teacher=cached", "teacher.cached.folder=kept"]
    words = ["distill", *(word for word in cached if not word.startswith("teacher."))]
    words.append("teacher.cached.folder=kept")
    capsys.readouterr()
    assert run(*words, "run_dir=dense") == 0 and SAID not in capsys.readouterr().out
    monkeypatch.setattr(heads, "LARGE", 1000)
    assert run(*words, "run_dir=fused") == 0 and SAID in capsys.readouterr().out
    for metric, value in rows("dense")["student distilled"]["metrics"].items():
        assert rows("fused")["student distilled"]["metrics"][metric] == pytest.approx(value, rel=2e-4), metric
    assert run("distill", *TINY, "loss=[ce,nkd]", "run_dir=logits") == 0  # auto: what reads logits gets them
    assert SAID not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss=[ce,nkd]"], "loss.nkd reads logits"),
        (["loss=[ce,kl]", "balance=uncertainty"], "balance weighs terms by gradients of their own"),
        (["loss=[ce,kl]", "teacher.ensemble=2"], "the teacher is not one language model"),
        (["loss=[ce,topk]"], "loss.topk takes the best entries out of the teacher's logits"),
    ],
)
def test_what_stands_in_the_way_is_said(settings: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY, *settings, "task.fused_head=true") == 2
    error = capsys.readouterr().err
    assert not list(Path("store").glob("networks/*"))  # before anything is trained
    assert "task.fused_head=true cannot be" in error and message in error and "Traceback" not in error


@pytest.mark.parametrize(("value", "shown"), [("maybe", "'maybe'"), ("0", "0"), ("1", "1"), ("null", "None")])
def test_a_wrong_setting(value: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY, f"task.fused_head={value}") == 2
    assert f"task.fused_head must be auto, true or false, got {shown}" in capsys.readouterr().err
