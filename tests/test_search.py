"""A search with a budget, on a clock and with trainings of its own: what is tried, kept, written and said."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from kdkit._config.check import prepare
from kdkit._config.compose import Composer
from kdkit._config.context import Context
from kdkit._config.methods import with_losses
from kdkit._config.recipes import recipes_dir
from kdkit._config.search import Candidates, find_candidates
from kdkit._files import append_jsonl, read_jsonl
from kdkit._run import search
from kdkit._run.cells import Cell
from kdkit.cli import main
from kdkit.errors import ConfigError, KdkitError

OVERHEAD, STEP, FULL = 0.5, 0.01, 400
WORDS = [
    "experiment=digits",
    "student.model.width=2",
    "teacher.model.width=2",
    "teacher.weights=random",
    "losses=[kd,nkd]",
    "search.loss.kd.temperature=[1,2,3,4,6,8]",
    "search.loss.nkd.temperature=[1,2]",
    "search.loss.nkd.gamma=[1.0,1.5]",
    "search.weights.kd=[1.0]",
    "search.weights.nkd=[1.0]",
    f"engine.max_steps={FULL}",
    "workers=1",
]
COMPOSER = Composer(recipes_dir())


def composed(*words: str) -> tuple[DictConfig, Context]:
    words = (*words, with_losses(COMPOSER, "compare", words))
    context = Context("compare", words, words, recipes_dir(), "compare")
    return prepare(COMPOSER.compose("compare", words), context), context


@pytest.fixture(scope="module")
def started() -> tuple[DictConfig, Context]:
    return composed(*WORDS, "budget=1h")


@pytest.fixture(scope="module")
def found(started: tuple[DictConfig, Context]) -> Candidates:
    return find_candidates(*started)


class World:
    """Trainings that take the time they are said to, with results that follow from their settings."""

    def __init__(self) -> None:
        self.now = 0.0
        self.trained: list[tuple[str, str, int, int]] = []
        self.fails: Callable[[str, int, Cell], str | None] = lambda stage, steps, cell: None
        self.slower: Callable[[str], float] = lambda stage: 1.0
        self.quality = quality
        self.tools = search.Tools(
            lambda: self.now, lambda c, _: self.run("trial", c), lambda c, _: self.run("final", c)
        )

    def run(self, stage: str, cell: Cell) -> dict[str, Any]:
        steps = int(cell.settings["engine"]["max_steps"])
        seconds = STEP * steps * self.slower(stage)
        self.now += seconds + OVERHEAD
        Path(cell.folder).mkdir(parents=True, exist_ok=True)
        record = {
            "method": cell.method,
            "seed": cell.seed,
            "run_dir": cell.folder,
            "losses": list(cell.settings["loss"]),
        }
        error = self.fails(stage, steps, cell)
        if error == "stop":
            raise KeyboardInterrupt
        self.trained.append((stage, cell.method, cell.seed, steps))
        if error:
            kind = "NonFiniteError" if "NaN" in error else "ConfigError"
            failed = {"status": "failed", "error": error, "kind": kind, "metrics": {}, "validation": {}}
            return {**record, **failed, "seconds": None, "wall": seconds + OVERHEAD}
        value = self.quality(cell) * (1 - math.exp(-steps / 100)) + 0.001 * cell.seed
        metrics = {"accuracy": 1 - value, "ece": 0.1} if stage == "final" else {}
        done = {"status": "ok", "error": None, "metrics": metrics, "validation": {"accuracy": value, "nll": 1 - value}}
        times = {"seconds": seconds, "steps": steps, "step_seconds": seconds / steps, "validating": 0.1}
        return {**record, **done, **times, "wall": seconds + OVERHEAD}


def quality(cell: Cell) -> float:
    """Best is kd at temperature 3."""
    kd, nkd = cell.settings["loss"].get("kd"), cell.settings["loss"].get("nkd")
    if kd:
        return 0.9 - 0.02 * abs(kd["temperature"] - 3)
    return 0.8 + 0.01 * nkd["temperature"] if nkd else 0.7


Compare = Callable[..., Path]


@pytest.fixture
def compare(
    started: tuple[DictConfig, Context], found: Candidates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Compare:
    """``compare(world, budget, **settings)`` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "find_candidates", lambda cfg, context: found)
    monkeypatch.setattr("kdkit.report.compare_report._pictures", lambda rows, teacher: [])
    cfg, context = started

    def run(world: World, budget: str = "120s", **settings: str) -> Path:
        own = {"budget": budget, **({} if "resume" in settings else {"run_dir": "board"}), **settings}
        return search.find_best(OmegaConf.merge(cfg, own), context, world.tools)  # type: ignore[arg-type]

    return run


def facts() -> dict[str, Any]:
    return json.loads(Path("board/compare.json").read_text())


def rungs() -> list[tuple[int, int]]:
    return [(len(rung["candidates"]), rung["steps"]) for rung in facts()["search"]["rungs"]]


# ---- the search ------------------------------------------------------------------------------------------------------


def test_the_best_by_validation_wins_within_the_budget(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    compare(world)
    assert world.now <= 120
    winner = facts()["search"]["winner"]
    assert winner["name"] == "kd temperature=3" and winner["stage"] == "final" and winner["n"] == 3
    final = [entry for entry in world.trained if entry[0] == "final"]
    assert Counter(name for _, name, _, _ in final)["ce"] == 3
    assert {steps for *_, steps in final} == {FULL}
    assert {seed for _, _, seed, _ in final} == {0, 1, 2}
    assert {seed for stage, _, seed, _ in world.trained if stage == "trial"} == {3}
    text = capsys.readouterr().out
    assert "winner: kd temperature=3" in text and "10 candidates of 2 methods" in text
    assert "again:  kdkit distill --config-dir board/winner experiment=winner seed=0" in text


def test_each_rung_keeps_the_best_third_and_is_three_times_longer(compare: Compare) -> None:
    compare(World(), "110s")
    (first, short), (second, longer) = rungs()
    assert (first, second) == (10, 4) and FULL >= longer >= min(3 * short, FULL), (
        "the plan is made anew, with the time that is left"
    )
    kept = facts()["search"]["rungs"][1]["candidates"]
    assert set(kept) == {"kd", "kd temperature=1", "kd temperature=2", "kd temperature=3"}
    assert kept[0] == "kd temperature=3"
    assert facts()["search"]["final"]["candidates"][0] == "ce"
    assert len(facts()["search"]["final"]["candidates"]) == 4


def test_the_final_has_new_seeds_and_one_look_at_the_test_split(compare: Compare) -> None:
    world = World()
    compare(world)
    records = read_jsonl("board/results.jsonl")
    assert len(records) == len({(r["method"], r["seed"]) for r in records}) == 12
    assert all(not record["metrics"] for record in read_jsonl("board/search.jsonl"))
    best_on_test = max(records, key=lambda record: record["metrics"]["accuracy"])["method"]
    assert best_on_test != facts()["search"]["winner"]["name"], (
        "the made-up test split prefers what validation does not"
    )


def test_the_student_alone_may_win(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.quality = lambda cell: 0.9 if list(cell.settings["loss"]) == ["ce"] else 0.5
    compare(world)
    assert facts()["search"]["winner"]["name"] == "ce"
    assert "No candidate was better than the baseline on the validation split." in capsys.readouterr().out
    assert "loss:\n  ce:" in Path("board/winner/experiment/winner.yaml").read_text()


def test_a_search_may_do_without_a_baseline(
    compare: Compare, found: Candidates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "find_candidates", lambda cfg, context: replace(found, baseline=None))
    world = World()
    compare(world)
    assert all(name != "ce" for _, name, *_ in world.trained)
    assert facts()["search"]["winner"]["name"] == "kd temperature=3"
    assert "No candidate was better" not in capsys.readouterr().out


def test_a_budget_that_is_too_short_says_what_would_do(compare: Compare) -> None:
    world = World()
    with pytest.raises(
        ConfigError, match=r"budget=20s is too short: the smallest search \(2 candidates for 20 steps"
    ) as caught:
        compare(world, "20s")
    assert not Path("board").exists()
    enough = str(caught.value).split("give about budget=")[1].split(",")[0]
    compare(World(), enough)
    assert facts()["search"]["winner"]["stage"] == "final"
    assert len(facts()["search"]["not_tried"]) > 0


def test_what_fails_is_recorded_and_dropped(compare: Compare) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "loss became NaN" if cell.method == "kd temperature=3" else None
    compare(world)
    assert facts()["search"]["winner"]["name"] == "kd"
    page = Path("board/report.md").read_text()
    assert re.search(r"\| kd temperature=3 \| failed \| .* failed: loss became NaN \|", page)


def test_a_method_that_cannot_run_is_left_out_with_its_reason(compare: Compare) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "no classifier" if "nkd" in cell.settings["loss"] else None
    compare(world)
    assert facts()["search"]["left_out"] == {"nkd": "no classifier"}
    assert "- nkd: no classifier" in Path("board/report.md").read_text()
    assert sum("nkd" in name for _, name, *_ in world.trained) == 1


def test_a_method_that_diverges_as_it_stands_still_has_its_other_settings(compare: Compare) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "NaN" if cell.method == "nkd" else None
    compare(world)
    tried = {name for name, *_ in ((entry[1],) for entry in world.trained)}
    assert "nkd temperature=2" in tried
    assert facts()["search"]["left_out"] == {}


def test_a_baseline_that_cannot_run_ends_the_search(compare: Compare) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "no labels" if cell.method == "ce" else None
    with pytest.raises(KdkitError, match="the baseline ce cannot be trained: no labels"):
        compare(world)


def test_every_candidate_of_a_rung_may_fail(compare: Compare) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "too hot" if steps > 20 and cell.method != "ce" else None
    with pytest.raises(KdkitError, match="every candidate of rung 1 failed, the first with: too hot"):
        compare(world)


def test_a_failure_in_the_final_is_told_after_the_report(compare: Compare) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "full disk" if stage == "final" and cell.method == "kd" else None
    with pytest.raises(KdkitError, match="3 trainings of the final failed"):
        compare(world)
    assert Path("board/report.html").is_file() and facts()["search"]["winner"]["name"] == "kd temperature=3"


# ---- time ------------------------------------------------------------------------------------------------------------


def test_trainings_that_get_slower_make_the_rest_shorter(compare: Compare) -> None:
    world = World()
    world.slower = lambda stage: 1.5
    compare(world)
    assert world.now <= 120
    slow = facts()["search"]
    again = World()
    compare(again, "120s", run_dir="other")
    fast = json.loads(Path("other/compare.json").read_text())["search"]
    assert slow["rungs"][0]["steps"] < fast["rungs"][0]["steps"]


def test_a_budget_that_ends_in_the_final_leaves_what_exists(
    compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.slower = lambda stage: 3.0 if stage == "final" else 1.0
    compare(world)
    assert world.now <= 120 + 3 * STEP * FULL + OVERHEAD, "at most the training under way is too much"
    count = len(read_jsonl("board/results.jsonl"))
    assert 0 < count < 12
    text = capsys.readouterr().out
    assert f"{12 - count} of 12 trainings of the final have not run." in text
    assert "The budget did not suffice for all of the final" in text
    world.slower = lambda stage: 1.0
    compare(world, "400s", resume="board")
    assert len(read_jsonl("board/results.jsonl")) == 12
    assert "have not run" not in capsys.readouterr().out
    assert facts()["search"]["spent"] == pytest.approx(world.now)


def test_without_time_for_a_final_the_best_of_the_last_rung_is_named(
    compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.slower = lambda stage: 1.0 if len(world.trained) < 12 else 30.0
    compare(world)
    assert not Path("board/results.jsonl").exists()
    winner = facts()["search"]["winner"]
    assert winner["stage"].startswith("rung")
    text = capsys.readouterr().out
    assert "there was no time to compare it with the others in the final" in text and "The final has not begun." in text
    assert "Nothing has been measured on the test split yet." in Path("board/report.md").read_text()
    assert winner["command"].endswith("experiment=winner")


def test_nobody_wins_a_final_that_not_all_have_begun(compare: Compare) -> None:
    world = World()
    world.slower = lambda stage: 20.0 if stage == "final" else 1.0
    compare(world)
    assert {record["method"] for record in read_jsonl("board/results.jsonl")} == {"ce"}
    winner = facts()["search"]["winner"]
    assert winner["name"] == "kd temperature=3" and winner["stage"].startswith("rung")


@pytest.mark.parametrize("stop", [2, 20])
def test_a_search_that_was_stopped_goes_on_without_repeating_anything(
    compare: Compare, stop: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = World()
    compare(whole, "120s", run_dir="whole")
    world = World()
    world.fails = lambda stage, steps, cell: "stop" if len(world.trained) == stop else None
    with pytest.raises(KeyboardInterrupt):
        compare(world)
    assert "go on:  kdkit compare resume=board" in capsys.readouterr().out
    assert facts()["search"]["spent"] == pytest.approx(world.now)
    world.fails = lambda stage, steps, cell: None
    lost = world.now - sum(STEP * steps + OVERHEAD for *_, steps in world.trained)
    world.now += 1000.0  # the time between does not count
    compare(world, "120s", resume="board")
    assert len(world.trained) == len(set(world.trained))
    assert facts()["search"]["spent"] == pytest.approx(world.now - 1000.0)
    assert lost > 0 and facts()["search"]["winner"]["name"] == "kd temperature=3"
    if stop > 3:
        assert {entry for entry in world.trained if entry[0] == "final"} <= set(whole.trained)


def test_a_search_goes_on_with_its_own_candidates_only(
    compare: Compare, found: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "stop" if len(world.trained) == 5 else None
    with pytest.raises(KeyboardInterrupt):
        compare(world)
    fewer = replace(found, tried=found.tried[:-1])
    monkeypatch.setattr(search, "find_candidates", lambda cfg, context: fewer)
    with pytest.raises(ConfigError, match="resume=board searches among other candidates or settings"):
        compare(world, "120s", resume="board")
    Path("plain").mkdir()
    Path("plain/config.yaml").write_text("{}")
    Path("plain/compare.json").write_text("{}")
    with pytest.raises(ConfigError, match="resume=plain is a comparison without a budget"):
        compare(world, "120s", resume="plain")


# ---- data ------------------------------------------------------------------------------------------------------------


def test_a_search_needs_a_validation_split(
    compare: Compare, found: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = found.baseline.config.copy()  # type: ignore[union-attr]
    config.data.val_size = 0
    none = replace(found, baseline=replace(found.baseline, config=config))  # type: ignore[type-var]
    monkeypatch.setattr(search, "find_candidates", lambda cfg, context: none)
    message = r"budget=120s chooses by the validation split and data 'digits' has none; .*data\.val_size=500"
    with pytest.raises(ConfigError, match=message):
        compare(World())
    assert not Path("board").exists()


# ---- what is left in the folder --------------------------------------------------------------------------------------


def test_a_report_can_be_had_at_any_time(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    world.fails = lambda stage, steps, cell: "stop" if len(world.trained) == 6 else None
    with pytest.raises(KeyboardInterrupt):
        compare(world)
    capsys.readouterr()
    assert main(["report", "board"]) == 0
    assert "The final has not begun." in capsys.readouterr().out
    page = Path("board/report.md").read_text()
    assert "## How it was found" in page and "| kd | " in page and "in rung 1" in page
    assert "## Leaderboard" not in page and "search.jsonl" in page and "leaderboard.json" not in page
    assert "<h2>Leaderboard" not in Path("board/report.html").read_text()
    cell = {"method": "ce", "seed": 0, "status": "ok", "metrics": {"accuracy": 0.5}, "seconds": 1.0, "losses": ["ce"]}
    append_jsonl(Path("board/results.jsonl"), cell)
    assert main(["report", "board"]) == 0
    assert "baseline" in capsys.readouterr().out


def test_the_winners_recipe_has_the_settings_of_its_candidate(compare: Compare, found: Candidates) -> None:
    compare(World())
    candidate = next(c for c in found.tried if c.name == "kd temperature=3")
    composer = Composer(recipes_dir(), Path("board/winner"))
    words = ("experiment=winner", "seed=0")
    again = composer.compose("distill", words)
    prepare(again, Context("distill", words, words, recipes_dir(), "distill", Path("board/winner")))
    left, right = (OmegaConf.to_container(cfg, resolve=False) for cfg in (again, candidate.config))
    assert isinstance(left, dict) and isinstance(right, dict)
    extra = {"losses", "base", "baseline", "seeds", "workers", "budget", "search"}
    assert {key: value for key, value in right.items() if key not in extra | {"run_dir"}} == {
        key: value for key, value in left.items() if key != "run_dir"
    }
    text = Path("board/winner/experiment/winner.yaml").read_text()
    assert "# kdkit distill --config-dir board/winner experiment=winner\n" in text
