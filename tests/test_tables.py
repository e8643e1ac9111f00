"""Benchmark tables: the data, the runner, what it says of the results."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.tables._cells import ALONE, Plan, make_plan
from benchmarks.tables._run import smoke
from benchmarks.tables._summary import summarise, verdict
from benchmarks.tables._table import HERE, choose, load, names
from benchmarks.tables._write import headline, write_all
from kdkit.errors import ConfigError
from kdkit.report._format import metric

ROOT = Path(__file__).parents[1]
TABLES = names()


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The runner as a user types it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.tables", *words]
    return subprocess.run(command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=600)


# ---- the data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_whole(name: str) -> None:
    table = load(name)
    assert table.title and table.source and table.pairs and table.methods
    for method in table.methods.values():
        assert method.settings or method.missing or table.missing, method.title
        for value in method.published.values():
            assert isinstance(value, int | float)
    for pair in table.pairs.values():
        assert set(pair.published) <= {"teacher", "student"}


def test_published_values_have_a_place_where_they_were_read() -> None:
    for name in TABLES:
        table = load(name)
        for method in table.methods.values():
            assert not method.published or table.seen_in or method.seen_in, f"{name}: {method.title}"


def test_no_table_names_a_loss_or_network_that_there_is_not() -> None:
    recipes = {group: {path.stem for path in (ROOT / "recipes" / group).glob("*.yaml")} for group in ("loss", "model")}
    for name in TABLES:
        table = load(name)
        assert {net.recipe for net in table.networks.values() if net.recipe} <= recipes["model"] | {"none"}, name
        for method in table.methods.values():
            chosen = [word for word in method.settings if word.startswith("loss=")]
            losses = {part for word in chosen for part in word[5:].strip("[]").split(",")}
            assert losses <= recipes["loss"], f"{name}: {losses - recipes['loss']}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_composes(name: str) -> None:
    table = load(name)
    plan = make_plan(table, list(table.pairs), list(table.methods), made_up=True)
    published = sum(len(method.published) for method in table.methods.values())
    methods = [planned for planned in plan.cells if planned.method != ALONE]
    assert not published or len(methods) + len(plan.missing) == published


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_steps_of_cells_that_cover_every_method_and_network(tmp_path: Path) -> None:
    """`make smoke` runs all of them; images of ImageNet's size are left to it."""
    failed: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for name in TABLES:
        table = load(name)
        if any(word.startswith("data=imagenet") for word in table.settings):
            continue
        chosen = []
        for pair, two in table.pairs.items():
            for key, method in table.methods.items():
                losses = tuple(word for word in method.settings if word.startswith("loss="))
                new = {("method", *losses), ("teacher", two.teacher), ("student", two.student)}
                if not table.why_not(key, pair) and pair in method.published and not new <= seen:
                    seen |= new
                    chosen.append((pair, key))
        plans = [make_plan(table, [pair], [key]) for pair, key in chosen]
        cells = [plan.folders(tmp_path, [0])[0] for plan in plans]
        failed += smoke(cells, 1)
    assert len(seen) > 60
    assert not failed, [(record["pair"], record["method"], record["error"]) for record in failed]


def test_a_wrong_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load((HERE / "digits.yaml").read_text())
    monkeypatch.setattr("benchmarks.tables._table.HERE", tmp_path)
    for change, message in (
        ({"epoch": "first"}, "epoch must be one of"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"networks": {}}, "no network"),
    ):
        (tmp_path / "digits.yaml").write_text(yaml.safe_dump({**content, **change}))
        with pytest.raises(ConfigError, match=message):
            load("digits")
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load("digitz")


def test_choose() -> None:
    known = {"a": 1, "b": 2, "cc": 3}
    assert choose(None, known, "rows") == ["a", "b", "cc"]
    assert choose("[b,a]", known, "rows") == ["b", "a"]
    with pytest.raises(ConfigError, match="rows: there is no 'c'"):
        choose("c", known, "rows")


# ---- what is said of the results -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "published", "runs", "expected"),
    [
        ([70.0, 70.2, 70.4], 70.3, 5, "reproduced"),
        ([70.0, 70.2, 70.4], 72.0, 5, "below"),
        ([70.0, 70.2, 70.4], 68.0, None, "above"),
        ([70.0], 70.0, 5, "not compared"),
        ([], 70.0, 5, "not run"),
    ],
)
def test_verdict(values: list[float], published: float, runs: int | None, expected: str) -> None:
    assert verdict(values, published, runs)[0] == expected


def test_the_noise_is_the_t_interval_of_both_means() -> None:
    values = [70.0, 71.0, 72.0]  # s = 1; t(0.975, 2) = 4.302653
    half = 4.302653 * (1 / 3 + 1 / 5) ** 0.5
    assert verdict(values, 71.0 + half - 1e-3, 5)[0] == "reproduced"
    assert verdict(values, 71.0 + half + 1e-3, 5)[0] == "below"


@pytest.fixture
def plan() -> Plan:
    table = load("cifar100_crd_same")
    return make_plan(table, ["wrn-40-2/wrn-16-2"], ["kd", "at"])


def _record(method: str, seed: int, value: float, best: float, status: str = "ok") -> dict[str, Any]:
    metrics = {"accuracy": value, "ece": 0.1, "nll": 1.0, "agreement": 0.8} if status == "ok" else {}
    record = {"pair": "wrn-40-2/wrn-16-2", "method": method, "seed": seed, "status": status, "metrics": metrics}
    return {**record, "best": {"value": best, "epoch": 3}, "seconds": 2.0, "error": "boom"}


def test_summary_and_pages(plan: Plan, tmp_path: Path) -> None:
    records = [_record(ALONE, seed, 0.73 + 0.001 * seed, 0.74) for seed in range(3)]
    records += [_record("kd", seed, 0.749 + 0.001 * seed, 0.755) for seed in range(3)]
    records += [_record("at", 0, 0.5, 0.5, status="failed"), _record("at", 1, 0.70, 0.71)]
    records += [
        _record("kd", 0, 0.0, 0.0, status="failed"),
        _record("kd", 0, 0.749, 0.755),
    ]  # run again: the last counts
    (lines,) = summarise(plan, records, []).values()
    teacher, alone, kd, at = lines
    assert (teacher.verdict, teacher.published) == ("not run", 75.61)
    assert kd.mean == pytest.approx(75.0) and kd.best_mean == pytest.approx(75.5) and kd.published == 74.92
    assert kd.difference == pytest.approx(0.08) and kd.verdict == "reproduced"
    assert kd.gain == pytest.approx(1.9) and kd.p is None  # the same difference for every seed
    assert at.failed == 1 and at.verdict == "not compared" and at.published == 74.08
    assert alone.gain is None
    assert "Of 2 published values 2 were reproduced" in headline(lines, metric("accuracy"))
    page = write_all(plan, records, [], tmp_path)
    html = page.read_text()
    for text in ("74.92", "75.00 ± 0.10", "reproduced", "wrn-40-2 → wrn-16-2", "Accuracy and calibration"):
        assert text in html
    assert "| KD | 74.92 | 75.00 ± 0.10 | 75.50 ± 0.00 | +0.08 | reproduced |" in (tmp_path / "table.md").read_text()
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["method"] for row in rows] == ["teacher", ALONE, "kd", "at"] and float(rows[2]["mean"]) == kd.mean
    tex = (tmp_path / "table.tex").read_text()
    assert r"KD & published & 74.92 \\" in tex and r"75.00 $\pm$ 0.10" in tex and r"$\to$" in tex


def test_error_rates_become_accuracies() -> None:
    table = load("cifar100_ofd")
    method, pair = next((key, pair) for key, each in table.methods.items() for pair in each.published)
    assert table.error and table.published(method, pair) == pytest.approx(100 - table.methods[method].published[pair])


def test_nothing_measured_says_so(plan: Plan) -> None:
    (lines,) = summarise(plan, [], []).values()
    assert {line.verdict for line in lines} == {"not run"}
    assert headline(lines, metric("accuracy")) == "Nothing has been measured yet. 3 rows have not been run."


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table=digitz"], "there is no table 'digitz'; did you mean 'digits'?"),
        (["table=digits", "rows=kdd"], "rows: there is no 'kdd' in this table"),
        (["table=digits", "pairs=a/b"], "pairs: there is no 'a/b' in this table"),
        (["table=digits", "seeds=0"], "seeds must be at least 1"),
        (["table=digits", "seeds=[1,1]"], "seeds must be a number"),
        (["table=digits", "workers=none"], "workers must be a whole number"),
        (["table=digits", "--smok"], "there is no option '--smok'; did you mean '--smoke'"),
        (["digits"], "'digits' must be KEY=VALUE"),
        (["tabel=digits"], "there is no option 'tabel'; did you mean 'table'?"),
        (["rows=kd"], "table must be given"),
        (["table=imagenet_r34_r18", "rows=dkd"], "data.root must be given: the folder with the ILSVRC2012 images"),
        (["table=digits", "rows=kd", "engine.epoch=3"], "engine has no setting 'epoch'; did you mean 'epochs'"),
        (["table=digits", "--report", "out=nowhere"], "out=nowhere has no results.jsonl"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr and done.stderr.startswith("kdkit: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_killed_and_continued_gives_the_same(tmp_path: Path) -> None:
    words = [
        "table=digits",
        "rows=kd",
        "seeds=2",
        "engine.epochs=4",
        "teacher.train.epochs=1",
        "engine.checkpoint_every=1",
    ]
    whole = run(*words, f"out={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "benchmarks.tables", *words, f"out={tmp_path / 'cut'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cut").glob("cells/*/*/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "cut").glob("cells/*/*/checkpoints/*"))
    again = run(*words, f"out={tmp_path / 'cut'}")
    assert again.returncode == 0, again.stderr
    results = [_measured(tmp_path / name) for name in ("whole", "cut")]
    assert results[0] == results[1] and len(results[0]) == 4
    words = [word.replace("engine.epochs=4", "engine.epochs=5") for word in words]
    other = run(*words, f"out={tmp_path / 'cut'}")
    assert other.returncode == 2 and "engine.epochs=4 then, 5 now" in other.stderr


def _measured(folder: Path) -> dict[tuple[str, int], Any]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {(line["method"], line["seed"]): (line["metrics"], line["best"]) for line in lines}


@pytest.mark.slow
def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ["engine.epochs=1", "teacher.train.epochs=1", "weights.js=1e38", "workers=2"]
    done = run("table=digits", "rows=kd,js", *settings, f"out={out}")
    assert done.returncode == 1 and "1 of 3 cells failed" in done.stderr, done.stderr
    status = {line["method"]: line for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert status["kd"]["status"] == status[ALONE]["status"] == "ok"
    assert status["js"]["status"] == "failed" and "js" in status["js"]["error"]
    assert "failed" in (out / "table.md").read_text()
