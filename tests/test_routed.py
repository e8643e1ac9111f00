"""``teacher=routed`` and ``teacher.shares`` from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit.cli import main

pytestmark = pytest.mark.slow

QUICK = [
    "engine.progress=none",
    "engine.baseline=false",
    "engine.report=false",
    "engine.eval_every=0",
    "engine.max_steps=3",
    "logger=[]",
]
DIGITS = ["experiment=digits", "data.augment=false", "engine.batch_size=32", *QUICK]
TEXT = [
    "experiment=stdlib_lm",
    "data.max_bytes=60000",
    "data.vocab_size=300",
    "data.context=64",
    "data.source=package",
    "student.model.hidden_size=16",
    "student.model.intermediate_size=32",
    "engine.batch_size=4",
    *QUICK,
]
ROUTED = """# @package _global_
# kdkit distill --config-dir mine experiment=NAME
defaults:
  - BASE
  - override /teacher: routed
  - _self_
teacher:
  routed:
    teachers:
      one: {model: ONE, weights: random}
      two: {model: TWO, weights: random}
    routes: ROUTES
"""
CNN = "{_target_: kdkit.models.small_cnn, width: WIDTH, num_classes: 10, in_chans: 1}"


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


def write(name: str, base: str, one: str, two: str, routes: str) -> list[str]:
    """An experiment of the user's, and the words that choose it."""
    place = Path("mine/experiment")
    place.mkdir(parents=True, exist_ok=True)
    text = ROUTED.replace("BASE", base).replace("ONE", one).replace("TWO", two).replace("ROUTES", routes)
    (place / f"{name}.yaml").write_text(text)
    return ["--config-dir", "mine", f"experiment={name}"]


def student(run_dir: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir, "student", "model.safetensors"))


def same(one: str, other: str) -> bool:
    left, right = student(one), student(other)
    return all(torch.equal(value, right[name]) for name, value in left.items())


def test_classes_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    wide, narrow = CNN.replace("WIDTH", "16"), CNN.replace("WIDTH", "8")
    split = write("split", "digits", wide, narrow, '{"[0-4]": one, "*": two}')
    assert run("distill", *DIGITS[1:], *split, "run_dir=split") == 0
    text = capsys.readouterr().out
    assert "drawn at random from seed 1000" in text and "drawn at random from seed 1001" in text
    rows = {row["name"]: row for row in json.loads(Path("split/results.json").read_text())["rows"]}
    assert rows["teacher"]["network"] == "2 networks" and "agreement" in rows["student distilled"]["metrics"]
    most = write("most", "digits", wide, narrow, '{"*": {one: 1.0, two: 0.0}}')
    assert run("distill", *DIGITS[1:], *most, "run_dir=most") == 0
    single = ["teacher=small_cnn", "teacher.model.width=16", "teacher.weights=random"]
    assert run("distill", *DIGITS, *single, "run_dir=single") == 0
    assert same("most", "single") and not same("split", "single")
    for words, sentence in [
        (["loss=[ce,nd]"], "reads features or weights of one teacher, and teacher=routed has several"),
        (["teacher.routed.combine=prob"], "did you mean 'probs'"),
        (["teacher.routed.teachers.one.weihts=x"], "weihts"),
        (["+teacher.routed.routes.x=one"], "routes['x'] fits no source that is left"),
        (["+teacher.routed.routes.x=on"], "leads to 'on', which is no teacher; did you mean 'one'?"),
    ]:
        assert run("distill", *DIGITS[1:], *split, *words) == 2, words
        assert sentence in capsys.readouterr().err, words
    assert run("train", *DIGITS[1:3], *split, "network=teacher") == 2
    assert "teacher.routed is several networks" in capsys.readouterr().err


def test_packages_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    llama = "{_target_: kdkit.models.hf_causal_lm, model_type: llama, vocab_size: '${spec.vocab_size}', hidden_size: 32"
    llama += ", intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 4, max_position_embeddings: 64}"
    routes = '{modules: one, "*": {one: 0.25, two: 0.75}}'
    words = write("packages", "stdlib_lm", llama, llama, routes)
    assert run("distill", *TEXT[1:], *words, "run_dir=routed") == 0
    capsys.readouterr()
    plain = [word for word in TEXT[1:] if not word.startswith("data.source")]
    assert run("distill", *plain, *words) == 2
    assert "names a source, and the data tell none apart; set data.source" in capsys.readouterr().err
    assert run("cache", *TEXT[1:4], "data.source=package", *words, "cache.k=300", "cache.folder=kept") == 0
    assert run("distill", *TEXT, "teacher=cached", "teacher.cached.folder=kept", "run_dir=cached") == 0
    for name, value in student("routed").items():
        torch.testing.assert_close(student("cached")[name], value, rtol=1e-2, atol=1e-3)


def test_shares_of_an_ensemble(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DIGITS, "teacher=small_cnn", "teacher.model.width=8", "teacher.weights=random", "teacher.ensemble=2"]
    assert run("distill", *words, "run_dir=equal") == 0
    assert run("distill", *words, "teacher.shares=[1,3]", "run_dir=other") == 0
    assert not same("equal", "other")
    capsys.readouterr()
    assert run("distill", *words, "teacher.shares=[1]") == 2
    assert "teacher.shares must hold one number above 0 for each of the 2 teachers, got [1]" in capsys.readouterr().err
