"""``kdkit compare budget=…`` from the command line, with real trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdkit._files import read_jsonl
from kdkit.cli import main

pytestmark = pytest.mark.slow

TINY = [
    "experiment=digits",
    "student.model.width=2",
    "teacher.model.width=3",
    "teacher.train.max_steps=3",
    "engine.max_steps=12",
    "engine.batch_size=32",
    "engine.progress=none",
    "search.trial_steps=2",
    "search.finalists=1",
    "losses=[kd,nkd]",
    "search.loss.kd.temperature=[1.0,2.0,-0.5]",
    "search.loss.nkd={}",
    "search.weights.kd=[1.0]",
    "search.weights.nkd=[1e38]",
    "seeds=2",
    "workers=1",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("kdkit.report.compare_report._pictures", lambda rows, teacher: [])


def words(*more: str) -> list[str]:
    return [word.replace(",-0.5", "") for word in TINY] + [*more]


def test_a_search_leaves_a_recipe_that_trains_the_same_student(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words("budget=10m", "run_dir=board")]) == 0
    out = capsys.readouterr().out
    stages = {record["stage"] for record in read_jsonl("board/search.jsonl")}
    assert stages == {"trial", 0}
    diverged = [record for record in read_jsonl("board/search.jsonl") if record["method"] == "nkd weight=1e+38"]
    assert [record["kind"] for record in diverged] == ["NonFiniteError"]
    assert all(
        "test" not in str(record["metrics"]) and not record["metrics"] for record in read_jsonl("board/search.jsonl")
    )
    winner = json.loads(Path("board/compare.json").read_text())["search"]["winner"]
    final = next(r for r in read_jsonl("board/results.jsonl") if r["method"] == winner["name"] and r["seed"] == 0)
    command = winner["command"].split()
    assert f"again:  {winner['command']}" in out and command[:2] == ["kdkit", "distill"]
    assert main([*command[1:], "run_dir=again", "engine.report=false"]) == 0
    rows = {row["name"]: row for row in json.loads(Path("again/results.json").read_text())["rows"]}
    row = rows.get("student distilled") or rows["student"]
    assert row["metrics"] == final["metrics"]


def test_mistakes_end_with_one_sentence_and_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *TINY, "budget=10m", "run_dir=board"]) == 2
    assert "search of 'kd temperature=-0.5': KDLoss: temperature must be a positive number" in capsys.readouterr().err
    assert main(["compare", *words("budget=1s", "run_dir=board")]) == 2
    assert "budget=1s" in capsys.readouterr().err
    assert main(["compare", *words("budget=10m", "run_dir=board", "search.loss.kd.temprature=[1]")]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert not Path("board").exists()


def test_a_search_goes_on_with_its_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *words("budget=10m", "run_dir=board")]) == 0
    results = read_jsonl("board/results.jsonl")
    Path("board/results.jsonl").write_text("")
    before = Path("board/search.jsonl").read_text()
    capsys.readouterr()
    assert main(["compare", "resume=board", "budget=15m"]) == 0
    assert "of 15m left" in capsys.readouterr().out
    assert Path("board/search.jsonl").read_text() == before
    again = read_jsonl("board/results.jsonl")
    assert [(r["method"], r["seed"], r["metrics"]) for r in again] == [
        (r["method"], r["seed"], r["metrics"]) for r in results
    ]
    assert main(["compare", *words("resume=board")]) == 2
    assert "is a search with a budget" in capsys.readouterr().err
