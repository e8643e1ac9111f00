"""``teacher=served`` from end to end: the student of a server is that of its network, whatever happens between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit.cli import main

from .serving import Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("served")]

TINY = [
    "experiment=stdlib_lm",
    "data.max_bytes=20000",
    "data.vocab_size=300",
    "data.context=64",
    "student.model.hidden_size=16",
    "student.model.intermediate_size=32",
    "engine.batch_size=4",
    "engine.max_steps=4",
    "engine.log_every=2",
    "engine.progress=none",
    "engine.baseline=false",
    "engine.report=false",
    "engine.eval_every=0",
    "logger=[]",
    "loss=[ce,topk]",
    "loss.topk.k=8",
]
SERVED = ["teacher=served", "teacher.served.model=large", "teacher.served.k=8", "teacher.served.wait=0.05"]


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


@pytest.fixture(scope="module")
def live(large: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of a student of the network in memory."""
    place = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_STORE", str(place / "store"))
        words = ["teacher=hf_causal_lm", f"teacher.model.pretrained={large}", f"run_dir={place / 'run'}"]
        assert run("distill", *TINY, *words) == 0
    return str(place / "run")


def assert_same_student(one: str, other: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    left, right = (load_file(Path(run, "student", "model.safetensors")) for run in (one, other))
    assert list(left) == list(right)
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_student_of_the_server_is_the_student_of_its_network(
    server: Server, live: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "sesame")
    words = [*SERVED, f"teacher.served.url={server.url}", "teacher.served.key_variable=OUR_KEY"]
    capsys.readouterr()
    assert run("distill", *TINY, *words, "run_dir=served") == 0
    assert f"teacher large: 8 of 300 entries per token from the server at {server.url}" in capsys.readouterr().out
    assert_same_student(live, "served")
    rows = {row["name"] for row in json.loads(Path("served/results.json").read_text())["rows"]}
    assert rows == {"student distilled"}
    for path in Path("served").rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes(), path
    assert set(server.control()["keys"]) == {"Bearer sesame"}


def test_a_server_that_dies_costs_nothing(large: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", *TINY, *SERVED, "engine.accumulation=2"]
    assert run(*words, f"teacher.served.url={server.url}", "run_dir=whole") == 0
    asked = server.control()["asked"]
    mortal = Server(large)
    mortal.control(after=asked // 2)
    here = [f"teacher.served.url={mortal.url}", "teacher.served.retries=1"]
    command = [sys.executable, "-m", "kdkit.cli", *words, *here, "run_dir=parted"]  # a status and one sentence
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    broken = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert broken.returncode == 2
    lines = broken.stderr.strip().splitlines()
    assert len(lines) == 1, broken.stderr
    assert f"kdkit: the server at {mortal.url} was asked 2 times and did not answer" in lines[0]
    assert lines[0].endswith("nothing is lost: go on with kdkit distill resume=parted")
    steps = sorted(path.name for path in Path("parted/checkpoints").glob("step-*"))
    assert len(steps) == 1 and 0 < int(steps[0].removeprefix("step-")) < 4
    mortal.stop()
    assert run("distill", "resume=parted") == 2  # the server is still down
    assert "go on with kdkit distill resume=parted" in capsys.readouterr().err
    assert sorted(path.name for path in Path("parted/checkpoints").glob("step-*")) == steps
    again = Server(large, mortal.port)
    try:
        assert run(*words, *here, "resume=parted") == 0
    finally:
        again.stop()
    assert_same_student("whole", "parted", rtol=0, atol=0)
    capsys.readouterr()
    moved = [f"teacher.served.url={server.url}", "teacher.served.retries=3"]  # not what differs
    assert run(*words, *moved, "teacher.served.k=7", "resume=parted") == 2
    assert "was started with teacher.served.k=8, now teacher.served.k=7" in capsys.readouterr().err


def test_a_server_that_lies_at_once_leaves_no_folder(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    here = [*TINY, *SERVED, f"teacher.served.url={server.url}", "teacher.served.retries=0"]
    server.control(fault="nan")
    assert run("distill", *here, "run_dir=lied") == 2
    assert "which is no log-probability" in capsys.readouterr().err
    assert not Path("lied").exists()
    server.control()
    for words, sentence in [
        (["teacher.served.model=larger"], "has no model 'larger'; did you mean 'large'"),
        (["loss.topk.temperature=2"], "loss.topk softens the teacher at temperature 2 and a server answers at 1"),
        (
            ["loss=[ce,topk,hidden_mse]"],
            "reads features or weights of the teacher, and teacher=served has its answers only",
        ),
        (["+chain.link={}"], "chain trains several students from a teacher in memory, and teacher.served has its"),
    ]:
        assert run("distill", *here, *words) == 2, words
        assert sentence in capsys.readouterr().err, words
    assert run("train", *TINY, *SERVED, "network=teacher") == 2
    assert "teacher.served is behind a server and cannot be trained" in capsys.readouterr().err
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.json"))


def test_the_student_may_write_and_the_server_judge(server: Server, large: Path) -> None:
    words = [*TINY, "strategy=on_policy", "strategy.share=1", "strategy.prompt_tokens=8", "strategy.max_new_tokens=8"]
    words += ["engine.max_steps=2"]
    assert run("distill", *words, *SERVED, f"teacher.served.url={server.url}", "run_dir=served") == 0
    assert run("distill", *words, "teacher=hf_causal_lm", f"teacher.model.pretrained={large}", "run_dir=live") == 0
    assert_same_student("live", "served")


def test_a_cache_out_of_a_server(server: Server, live: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, *SERVED, f"teacher.served.url={server.url}", "cache.dtype=float32", "cache.shard_samples=64"]
    server.control(after=None, fault="busy", times=1)
    assert run("cache", *words, "cache.folder=kept") == 0
    text = capsys.readouterr().out
    assert "8 of 300 entries per position" in text and "KL(teacher || cache) not known" in text
    learn = ["teacher=cached", "teacher.cached.folder=kept", "run_dir=cached"]
    assert run("distill", *TINY, *learn) == 0
    assert_same_student(live, "cached")
    assert run("cache", *words, "cache.k=9") == 2
    assert "cache.k must be at most the 8 entries that the server is asked for, got 9" in capsys.readouterr().err


def test_a_student_without_logits_learns_the_same(server: Server, live: str) -> None:
    words = [*TINY, *SERVED, f"teacher.served.url={server.url}"]
    assert run("distill", *words, "task.fused_head=true", "run_dir=without") == 0
    assert_same_student(live, "without")
    with pytest.raises(AssertionError):  # a student of another law is another one
        assert run("distill", *words, "loss.topk.k=2", "run_dir=other") == 0
        assert_same_student(live, "other")
