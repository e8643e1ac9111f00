"""Distillation from a teacher with a tokenizer of its own, from the settings to the exported student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig
from safetensors.torch import load_file

from kdkit._config.check import prepare
from kdkit._config.compose import Composer
from kdkit._config.context import Context
from kdkit._config.recipes import recipes_dir
from kdkit._run.folder import load_config
from kdkit.cli import main
from kdkit.errors import ConfigError

TINY = [
    "experiment=stdlib_lm_crosstok",
    "data.max_bytes=60000",
    "data.vocab_size=300",
    "data.context=48",
    "data.teacher_tokenizer.vocab_size=330",
    "student.model.hidden_size=16",
    "student.model.intermediate_size=32",
    "teacher.model.hidden_size=40",
    "teacher.model.intermediate_size=64",
    "teacher.train.max_steps=2",
    "engine.batch_size=4",
    "engine.max_steps=3",
    "engine.log_every=1",
    "engine.progress=none",
    "engine.baseline=false",
    "engine.report=false",
    "logger=[]",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def check(*overrides: str) -> DictConfig:
    context = Context("distill", overrides, overrides, recipes_dir(), "distill", None)
    return prepare(Composer(recipes_dir()).compose("distill", ["experiment=stdlib_lm_crosstok", *overrides]), context)


@pytest.mark.parametrize("losses", ["[ce,gold]", "[ce,uld,multilevel_ot]", "[ce,dskd]", "[ce]"])
def test_losses_that_go_across_tokenizers_are_fine(losses: str) -> None:
    check(f"loss={losses}")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["loss=[ce,kl]"],
            r"loss.kl compares student and teacher token by token, .+ \(.*gold, .*uld\)",
        ),
        (["loss=[ce,hidden_mse]"], r"loss.hidden_mse compares student and teacher token by token"),
        (["strategy=on_policy"], "strategy needs student and teacher to read the same tokens"),
        (["teacher=ema", "data.teacher_tokenizer=x"], "teacher.ema needs student and teacher to read the same tokens"),
        (["teacher=cached", "teacher.cached.folder=x", "data.teacher_tokenizer=x"], "teacher.cached needs student and"),
        (["+chain.ta.seed=3"], "chain needs student and teacher to read the same tokens"),
    ],
)
def test_what_needs_one_tokenizer_is_refused_before_anything_is_loaded(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check(*overrides)


def test_a_tokenizer_goes_with_the_teacher_that_an_experiment_had_it_for() -> None:
    for overrides in (["teacher=ema"], ["teacher=cached", "teacher.cached.folder=x"]):
        assert check(*overrides).data.teacher_tokenizer is None
    assert check().data.teacher_tokenizer.kind == "unigram"


def test_a_cache_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "experiment=stdlib_lm_crosstok", "data.max_bytes=60000", "data.vocab_size=300"]) == 2
    assert "kdkit cache keeps answers in the student's tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    assert not main(["distill", *TINY, "loss=[ce,gold,uld]", "run_dir=run"])
    results = json.loads(Path("run/results.json").read_text())
    rows = {row["name"]: row["metrics"] for row in results["rows"]}
    assert set(rows) == {"teacher", "student distilled"}
    for metrics in rows.values():
        assert metrics["bits_per_byte"] > 0
        assert not {"agreement", "kl_to_teacher"} & set(metrics)
    assert set(results["data"]["left_out_bytes"]) == {"train", "val", "test"}
    assert load_config(Path("run")).teacher.model.vocab_size == 330
    assert len(AutoTokenizer.from_pretrained("run/student")) == 300
    capsys.readouterr()
    assert not main(["distill", *TINY, "loss=[ce,uld,multilevel_ot,dskd]", "run_dir=again"])
    assert "taken from the store" in capsys.readouterr().out
    weights = load_file("again/student/model.safetensors")
    assert not [name for name in weights if "to_teacher" in name or "to_student" in name]
    assert not main(["evaluate", "run=run"])


@pytest.mark.slow
def test_the_teacher_alone_is_trained_and_kept_with_its_own_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    assert not main(["train", *TINY, "network=teacher", "run_dir=teacher"])
    assert len(AutoTokenizer.from_pretrained("teacher/student")) == 330
    metrics = json.loads(Path("teacher/results.json").read_text())["rows"][0]["metrics"]
    assert not main(["evaluate", "run=teacher"])
    again = json.loads(next(Path("teacher").glob("evaluation-*.json")).read_text())["row"]["metrics"]
    assert again["nll"] == pytest.approx(metrics["nll"], rel=1e-5)
    capsys.readouterr()
    assert not main(["distill", *TINY, "run_dir=run"])
    assert "taken from the store" in capsys.readouterr().out


@pytest.mark.slow
def test_one_tokenizer_in_the_data_and_two_networks_that_disagree_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*TINY, "data.teacher_tokenizer=null", "loss=[ce,kl]", "teacher.model.vocab_size=900"]
    words = [word for word in words if not word.startswith("data.teacher_tokenizer.")]
    assert main(["distill", *words]) == 2
    error = capsys.readouterr().err
    assert "the student's vocabulary has 300 tokens and the teacher's 900, more than padding explains" in error
    assert "Traceback" not in error
