"""Benchmark tables: what their results are worth: claims, facts, shared beginnings, what is kept in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from benchmarks.tables._cells import ALONE, Plan, make_plan, outline
from benchmarks.tables._claims import claim_cells, counts, findings
from benchmarks.tables._data import Watched
from benchmarks.tables._facts import read_facts, session, shown, told, unfinished
from benchmarks.tables._pictures import _limits
from benchmarks.tables._published import PAGE, PUBLISHED, published, read_results, results_page, whole
from benchmarks.tables._run import CONTEXT, _best, run_smoke, small, train_teachers
from benchmarks.tables._table import HERE, load
from benchmarks.tables._write import markdown
from kdkit.engine.distiller import Distiller
from kdkit.errors import ConfigError
from kdkit.report.statistics import holm, paired_test

PAIR = "small_cnn_w32/small_cnn_w4"


# ---- claims --------------------------------------------------------------------------------------------------------


def _plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims: list[dict[str, Any]], **more: Any) -> Plan:
    content = yaml.safe_load((HERE / "digits.yaml").read_text())
    content["networks"]["other"] = {"recipe": "small_cnn"}
    content["pairs"]["other/small_cnn_w4"] = {"teacher": "other", "student": "small_cnn_w4"}
    content["methods"]["at"]["missing_for"] = {PAIR: "there are no maps"}
    monkeypatch.setattr("benchmarks.tables._table.HERE", tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**content, "claims": claims, **more}, sort_keys=False))
    table = load("mine")
    return outline(table, list(table.pairs), ["kd", "nkd", "at"])


def _record(method: str, seed: int, pair: str = PAIR, **metrics: float) -> dict[str, Any]:
    return {"pair": pair, "method": method, "seed": seed, "status": "ok", "error": None, "metrics": metrics}


KD, NKD = [0.90, 0.91, 0.93, 0.92], [0.95, 0.955, 0.97, 0.96]


def test_a_claim_holds_fails_or_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [
        {"text": "NKD beats KD", "source": "a", "better": "nkd", "worse": "kd"},
        {"text": "KD beats NKD", "source": "b", "better": "kd", "worse": "nkd"},
        {"text": "KD is calibrated", "source": "c", "better": "kd", "worse": "nkd", "metric": "ece"},
        {"text": "KD is likely", "source": "d", "better": "kd", "worse": "nkd", "metric": "nll"},
        {"text": "KD beats the student", "source": "e", "better": "kd", "worse": ALONE},
    ]
    plan = _plan(tmp_path, monkeypatch, [{**claim, "pairs": [PAIR]} for claim in claims])
    records = [_record("kd", seed, accuracy=v, ece=0.1 - v / 100, nll=1.0) for seed, v in enumerate(KD)]
    records += [
        _record("nkd", seed, accuracy=v, ece=0.3 - v / 10, nll=1.0 + 0.1 * (-1) ** seed) for seed, v in enumerate(NKD)
    ]
    tested = findings(plan, [*records, _record("nkd", 9, accuracy=0.0)])
    assert [each.verdict for each in tested] == ["yes", "no", "yes", "not shown", "not run"]
    assert counts(tested) == "2 yes, 1 no, 1 not shown, 1 not run"
    first = tested[0]
    assert first.n == 4 and first.difference == pytest.approx(0.04375)
    nll = [1.0 + 0.1 * (-1) ** seed for seed in range(4)]
    ece = [0.1 - v / 100 for v in KD], [0.3 - v / 10 for v in NKD]
    raw = [paired_test(NKD, KD).p, paired_test(KD, NKD).p, paired_test(*ece).p, paired_test([1.0] * 4, nll).p]
    assert [each.p for each in tested] == pytest.approx([*holm(raw), None])
    cells = claim_cells(first)
    assert cells[:2] == ["NKD beats KD", "yes"] and cells[2].startswith("+4.37 (+") and cells[4] == "4"
    assert cells[5:] == [
        "NKD − KD, small_cnn_w32 → small_cnn_w4",
        "accuracy ↑",
        "95.88 ± 0.85 %",
        "91.50 ± 1.29 %",
        "a",
    ]
    assert claim_cells(tested[2])[6] == "ECE ↓"


def test_a_claim_about_gains_in_two_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "other/small_cnn_w4"
    claim = {"text": "pays more", "source": "a", "better": f"kd@{PAIR}", "worse": f"kd@{other}", "over": ALONE}
    plan = _plan(tmp_path, monkeypatch, [claim])
    gains = [0.10, 0.11, 0.12], [0.05, 0.02, 0.03]
    records = [_record(ALONE, seed, accuracy=0.5 + 0.1 * seed) for seed in range(3)]
    for pair, own in zip((PAIR, other), gains, strict=True):
        records += [_record("kd", seed, pair, accuracy=0.5 + 0.1 * seed + gain) for seed, gain in enumerate(own)]
    (each,) = findings(plan, records)  # the student alone of the second pair is that of the first
    assert plan.same == {(other, ALONE): PAIR}
    assert each.difference == pytest.approx(0.23 / 3) and each.n == 3 and each.verdict == "yes"
    assert each.compared == ("gain over student alone: KD (small_cnn_w32 → small_cnn_w4) − KD (other → small_cnn_w4)")


def test_a_claim_is_tested_where_both_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(tmp_path, monkeypatch, [{"text": "t", "source": "s", "better": "at", "worse": "kd"}])
    assert plan.missing == {(PAIR, "at"): "there are no maps"}
    assert [each.compared for each in findings(plan, [])] == ["AT − KD, other → small_cnn_w4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": [{"text": "t", "source": "s", "better": "kdd", "worse": "kd"}]}, "claim 't': no method 'kdd'"),
        ({"claims": [{"text": "t", "source": "s", "better": "kd@a", "worse": "kd@b"}]}, "claim 't': no pair 'a'"),
        ({"claims": [{"text": "t", "source": "s", "better": f"kd@{PAIR}", "worse": "kd"}]}, "must both be METHOD@PAIR"),
        ({"claims": [{"text": "t", "source": "s", "better": "kd", "worse": "at", "over": "x"}]}, "no method 'x'"),
        ({"main": ["kdd"]}, "main: no method 'kdd'"),
    ],
)
def test_wrong_claims_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _plan(tmp_path, monkeypatch, **{"claims": [], **change})


def test_less_is_better_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(
        tmp_path,
        monkeypatch,
        [],
        metric="perplexity",
        pairs={PAIR: {"teacher": "small_cnn_w32", "student": "small_cnn_w4"}},
    )
    records = [
        {**_record(method, seed, perplexity=value + seed), "best": {"value": value, "epoch": None}, "seconds": 1.0}
        for method, value in ((ALONE, 30.0), ("kd", 20.0), ("nkd", 25.0))
        for seed in (0, 1)
    ]
    text = markdown(plan, records, [], tmp_path)
    assert "the best is KD with 20.50 ± 0.71, −10.00 against the student alone" in text
    assert "| NKD | 25.50 ± 0.71 |" in text


def test_limits_hold_the_bulk() -> None:
    low, high = _limits([20.0, 90.0, 91.0, 92.0, 93.0, 94.0, 95.0])
    assert 20 < low < 90 and high > 95
    assert _limits([1.0, 1.0]) == (0.5, 1.5)


# ---- facts ---------------------------------------------------------------------------------------------------------


def test_a_command_is_shown_without_folders_of_this_machine() -> None:
    words = ["table=digits", "out=/home/me/x", "data_dir=/data", "data.root=/data", "rows=a,b", "out=runs/x"]
    told = shown(words)
    assert (
        told
        == "python -m benchmarks.tables table=digits out=FOLDER data_dir=FOLDER data.root=FOLDER rows=a,b out=runs/x"
    )


def test_sessions_are_written_down(tmp_path: Path) -> None:
    with session(tmp_path, "digits", ["table=digits"], workers=2, cells=3, threads=1) as after:
        assert read_facts(tmp_path)["sessions"][0]["seconds"] < 60  # a session that is killed now has left something
        after()
    with pytest.raises(RuntimeError), session(tmp_path, "digits", ["table=digits"], workers=1, cells=1, threads=None):
        raise RuntimeError
    facts = read_facts(tmp_path)
    first, second = facts["sessions"]
    assert facts["table"] == "digits" and first["seconds"] is not None and second["seconds"] is not None
    assert {"command", "date", "commit", "local_changes", "processor", "cpus", "packages"} <= set(first)
    assert first["command"] == "python -m benchmarks.tables table=digits" and first["packages"]["torch"]
    lines = dict(told(facts))
    assert "2 cells at a time with 1 thread each" in lines["hardware"] and "in 2 sessions" in lines["wall time"]
    assert f"{first['cpus']} cores" in lines["hardware"] and "torch" in lines["versions"]
    assert told({}) == []
    done = [{"pair": "p", "method": "m", "seed": seed, "status": "ok"} for seed in (0, 1, 1)]
    assert unfinished(facts, done).startswith("Unfinished: 2 of 3 cells")
    assert unfinished(facts, [*done, {**done[0], "seed": 2}]) == "" == unfinished({}, [])


def test_the_best_epoch_is_one_on_the_test_split(tmp_path: Path) -> None:
    task = SimpleNamespace(primary="accuracy", higher_is_better=True)
    seen = [
        {"split": "val", "epoch": epoch, "metrics": {"accuracy": value}}
        for epoch, value in ((1, 0.5), (2, 0.7), (3, 0.6))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in seen))
    own = SimpleNamespace(name="mine", spec=None, views=1)
    scenes: list[Any] = [SimpleNamespace(task=task, data=data) for data in (Watched(own), own)]  # type: ignore[arg-type]
    assert _best(tmp_path, {"accuracy": 0.6}, scenes[0]) == {"value": 0.7, "epoch": 2}
    assert _best(tmp_path, {"accuracy": 0.6}, scenes[1]) == {"value": 0.6, "epoch": None}  # those were of another split


# ---- shared beginnings ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Student alone, a method on logits, one with a projector that learns."""
    plan = make_plan(load("digits"), [PAIR], ["kd", "fitnets"])
    return plan.folders(tmp_path_factory.mktemp("cells"), [3])


def test_methods_share_first_weights_and_the_order_of_the_samples(
    cells: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, list[tuple[torch.Tensor, list[int], torch.Tensor]]] = {}
    forward = Distiller.forward

    def watched(self: Distiller, batch: Any, *rest: Any) -> Any:
        weights = torch.cat([value.detach().flatten() for value in self.student.network.module.parameters()])
        seen[name].append((weights.clone(), batch["index"].tolist(), batch["image"].clone()))
        return forward(self, batch, *rest)

    monkeypatch.setattr(Distiller, "forward", watched)
    for cell in cells:
        name = cell.method
        seen[name] = []
        settings = small(cell.settings)
        record = run_smoke(type(cell)(cell.method, cell.seed, settings, cell.folder), CONTEXT)
        assert record["status"] == "ok", record["error"]
        assert str(Path(cell.folder).parents[2]) not in json.dumps(record)  # results hold no folder of this machine
    first, *others = seen.values()
    assert len(seen) == 3 and len(first) == 2
    for other in others:
        assert torch.equal(first[0][0], other[0][0])
        for mine, its in zip(first, other, strict=True):
            assert mine[1] == its[1] and torch.equal(mine[2], its[2])
        assert not torch.equal(first[1][0], other[1][0])  # the first step was another one


def test_teachers_are_written_down_once(cells: list[Any], tmp_path: Path) -> None:
    cut = []
    for cell in cells:
        settings = json.loads(json.dumps(cell.settings))
        if settings["teacher"]:
            settings["teacher"]["train"].update({"epochs": None, "max_steps": 1})
        cut.append(type(cell)(cell.method, cell.seed, settings, cell.folder))
    for _ in range(2):
        train_teachers(cut, tmp_path)
    lines = (tmp_path / "teachers.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["pair"] == PAIR


# ---- what is kept in the repository --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", published())
def test_kept_tables_can_be_made_again_from_their_results(name: str) -> None:
    folder, table = PUBLISHED / name, load(name)
    text = (folder / "table.md").read_text()
    assert text == markdown(whole(table), *read_results(folder), folder)
    assert read_facts(folder)["sessions"][0]["commit"]


def test_kept_results_are_small_and_name_no_folder_of_a_machine() -> None:
    assert published()
    for file in PUBLISHED.glob("*/*"):
        assert file.stat().st_size < 300_000, file
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|data|mnt)/", file.read_text()), file


def test_the_page_of_results_says_what_the_results_say() -> None:
    assert PAGE.read_text() == results_page()
