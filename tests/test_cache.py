"""``kdkit cache`` and what learns from it, from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdkit.cli import main

pytestmark = pytest.mark.slow

TINY = [
    "experiment=stdlib_lm",
    "data.max_bytes=60000",
    "data.vocab_size=300",
    "data.context=64",
    "student.model.hidden_size=16",
    "student.model.intermediate_size=32",
    "engine.batch_size=4",
    "engine.max_steps=6",
    "engine.log_every=6",
    "engine.progress=none",
    "engine.baseline=false",
    "logger=[]",
]
TEACHER = ["teacher.model.hidden_size=40", "teacher.model.intermediate_size=64", "teacher.train.max_steps=20"]
CACHE = ["cache", *TINY, *TEACHER, "cache.shard_samples=16"]


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


def checksums(path: str) -> dict[str, str]:
    return {file.parent.name: json.loads(file.read_text())["sha256"] for file in Path(path).glob("shard-*/facts.json")}


def test_a_student_learns_from_the_cache_what_it_learns_from_the_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CACHE, "cache.k=300", "cache.dtype=float32", "cache.folder=kept") == 0
    text = capsys.readouterr().out
    assert "300 of 300 entries per position" in text and "not kept: 0.00% of the teacher's mass" in text
    assert "use it with: kdkit distill … teacher=cached teacher.cached.folder=kept" in text
    assert run("distill", *TINY, *TEACHER, "run_dir=live") == 0
    cached = ["distill", *TINY, "teacher=cached", "teacher.cached.folder=kept"]
    assert run(*cached, "run_dir=cached") == 0
    live, out_of_cache = rows("live"), rows("cached")
    assert list(out_of_cache) == list(live)
    for name in live:
        for metric in ("nll", "bits_per_byte"):
            expected = pytest.approx(live[name]["metrics"][metric], rel=1e-4)
            assert out_of_cache[name]["metrics"][metric] == expected, (name, metric)
    assert "answers out of the cache kept" in out_of_cache["teacher"]["origin"]
    assert "agreement" not in out_of_cache["student distilled"]["metrics"]
    assert "report.html" in {path.name for path in Path("cached").iterdir()}
    assert run(*cached, "loss=[ce,topk]", "loss.topk.k=300", "run_dir=sparse") == 0
    sparse = rows("sparse")["student distilled"]["metrics"]["nll"]
    assert sparse == pytest.approx(live["student distilled"]["metrics"]["nll"], rel=1e-4)
    assert run(*cached, "loss.kl.temperature=3", "run_dir=warm") == 0  # with every entry kept, at any temperature


def test_killed_and_repeated_it_is_the_same_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CACHE, "cache.k=8", "cache.folder=whole") == 0
    command = [sys.executable, "-m", "kdkit.cli", *CACHE, "cache.k=8", "cache.folder=parted"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checksums("parted") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(checksums("parted"))
    assert 0 < done < len(checksums("whole"))
    learn = ["distill", *TINY, "teacher=cached", "teacher.cached.folder=parted"]
    capsys.readouterr()
    assert run(*learn) == 2
    assert "lacks shard" in capsys.readouterr().err
    assert run(*CACHE, "cache.k=8", "cache.folder=parted") == 0
    assert f"{done} of them there already" in capsys.readouterr().out
    assert checksums("parted") == checksums("whole")
    assert json.loads(Path("parted/manifest.json").read_text())["complete"]


def test_two_ranks_share_the_shards() -> None:
    random = [*CACHE, "cache.k=8", "teacher.weights=random", "engine.threads=1"]
    assert run(*random, "cache.folder=one") == 0
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "kdkit.cli"]
    subprocess.run([sys.executable, "-m", *launch, *random, "cache.folder=two"], check=True, timeout=300)
    assert checksums("two") == checksums("one")
    one, two = (json.loads(Path(name, "manifest.json").read_text()) for name in ("one", "two"))
    assert one["definition"] == two["definition"] and one["summary"] == two["summary"] and two["complete"]
    assert one["row"]["metrics"] == pytest.approx(two["row"]["metrics"])


def test_what_does_not_belong_together_is_refused_with_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CACHE, "cache.k=8", "cache.folder=kept") == 0
    cached = ["distill", *TINY, "teacher=cached", "teacher.cached.folder=kept"]
    for words, sentence in [
        ([*CACHE, "cache.k=9", "cache.folder=kept"], "kept holds a cache of something else (k: 8 there, 9 here)"),
        ([*cached, "data.context=32"], "(data.context: 64 there, 32 here)"),
        ([*cached, "data.vocab_size=310"], "(data.vocab_size: 300 there, 310 here)"),
        ([*cached, "loss.kl.temperature=2"], "make another cache with cache.temperature=2"),
        ([*cached, "loss=[ce,ttm]"], "loss.ttm softens the teacher at temperature 10.0"),
        ([*cached, "loss=[ce,logit_mse]"], "loss.logit_mse compares the logits themselves"),
        ([*cached, "+chain.link={}"], "chain trains several students from a teacher in memory"),
        ([*cached, "loss=[ce,hidden_mse]"], "reads features or weights of the teacher, and teacher=cached has its"),
        (
            [*cached, "loss=[ce,kl]", "+teacher_loss.ce._target_=kdkit.losses.CELoss", "+teacher_weights.ce=1"],
            "lets the teacher learn",
        ),
        (["distill", *TINY, "teacher=cached"], "teacher.cached.folder must be given"),
        (["train", *TINY, "teacher=cached", "teacher.cached.folder=kept", "network=teacher"], "cannot be trained"),
        ([*CACHE, "cache.k=301"], "cache.k must be at most the 300 entries of the vocabulary, got 301"),
        ([*CACHE, "cache.k=0"], "cache.k must be a whole number of at least 1, got 0"),
        ([*CACHE, "cache.dtype=int8"], "cache.dtype must be float16 or float32, got 'int8'"),
        ([*CACHE, "cache.folder=store"], "cache.folder=store is there already and holds something else"),
        (["cache", *TINY, "teacher=none", "loss=[ce]"], "kdkit cache needs a teacher that stays as it is"),
        (["cache", "experiment=digits"], "draws its training samples anew each time"),
    ]:
        capsys.readouterr()
        assert run(*words) == 2, words
        assert sentence in capsys.readouterr().err, words
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.json"))
