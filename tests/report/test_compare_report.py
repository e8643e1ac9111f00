"""The report of a comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdkit._files import read_jsonl
from kdkit.errors import InputError
from kdkit.report import write_compare_report
from kdkit.report.leaderboard import summarize

MakeCompare = Callable[..., Path]


def test_everything_is_written(make_compare: MakeCompare) -> None:
    folder = make_compare(broken=[("sinkhorn", 2)])
    assert write_compare_report(folder) == folder / "report.html"
    page = (folder / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "3 of 6 methods beat the baseline, ce (93.8 ± 1.3 %); best is kd with 96.3 ± 1.0 % accuracy." in page
    assert "The teacher reaches 98.2 %." in page
    assert "loss term &#39;sinkhorn&#39; became NaN at step 12" in page
    assert "ND takes class means over the training images." in page
    assert page.count("<figure") == 4 and page.count("<button type") == 9
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "| kd | 96.3 ± 1.0 % | +2.5 points | +1.5 to +3.4 | 0.011 | helps |" in markdown
    assert "| sinkhorn | 2 | loss term 'sinkhorn' became NaN at step 12 |" in markdown
    assert "\n\n\n" not in markdown
    for name in ("seeds", "differences", "calibration", "time"):
        assert f"plots/{name}.png" in markdown and (folder / "plots" / f"{name}.png").exists()
    assert "| kd | 96.3 ± 1.0 % |" in (folder / "leaderboard.md").read_text(encoding="utf-8")


def test_json_and_csv_hold_every_digit(make_compare: MakeCompare) -> None:
    folder = make_compare()
    write_compare_report(folder)
    rows = summarize(read_jsonl(folder / "results.jsonl"), "ce", "accuracy", True)
    board = json.loads((folder / "leaderboard.json").read_text())
    assert [row["method"] for row in board["rows"]] == [row.method for row in rows]
    assert board["rows"][0]["mean"] == rows[0].mean and board["rows"][0]["p_corrected"] == rows[0].p_corrected
    assert board["teacher"]["metrics"]["accuracy"] == pytest.approx(0.982)
    assert board["teacher"]["network"] == "resnet20"
    with (folder / "leaderboard.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["method"] for line in table] == [row.method for row in rows]
    assert float(table[0]["seed_3"]) == rows[0].values["3"]
    assert table[0]["losses"] == "ce+kd" and table[0]["rank"] == "1"


def test_one_seed(make_compare: MakeCompare) -> None:
    folder = make_compare(seeds=1)
    write_compare_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Nothing could be tested against the baseline" in page
    assert "one seed only, so no test" in page
    assert "Every seed</summary>" not in page and "p (Holm)" in page


def test_nothing_but_failures(make_compare: MakeCompare) -> None:
    folder = make_compare(
        seeds=2, effects={"ce": 0.0, "kd": 0.1}, broken=[(m, s) for m in ("ce", "kd") for s in (0, 1)]
    )
    write_compare_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Every cell of the baseline, ce, failed" in page
    assert "Cells that failed" in page


def test_cells_that_have_not_run(make_compare: MakeCompare) -> None:
    folder = make_compare(seeds=2, effects={"ce": 0.0, "kd": 0.1}, methods=["ce", "kd", "nkd"])
    write_compare_report(folder)
    assert "2 of 6 cells have not run" in (folder / "report.md").read_text()


def test_text_metrics_without_calibration_or_teacher(tmp_path: Path) -> None:
    from kdkit._files import append_jsonl, write_json

    for method, base in (("ce", 20.0), ("kl", 18.0)):
        for seed in range(3):
            value = base + seed + (0.1 if method == "kl" and seed else 0)
            append_jsonl(tmp_path / "results.jsonl", {"method": method, "seed": seed, "metrics": {"perplexity": value}})
    write_json(tmp_path / "compare.json", {"baseline": "ce", "primary": "perplexity", "higher_is_better": False})
    write_compare_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "1 of 1 method beat the baseline, ce (21.00 ± 1.00); best is kl with 19.07 ± 1.05 perplexity." in page
    assert "teacher reaches" not in page and page.count("<figure") == 2


def test_bad_folders_are_sentences(make_compare: MakeCompare, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a comparison holds compare\.json"):
        write_compare_report(tmp_path / "nowhere")
    folder = make_compare(primary=None)
    with pytest.raises(InputError, match=r"compare\.json must name its 'primary', got None"):
        write_compare_report(folder)
    (folder / "results.jsonl").write_text("")
    (folder / "compare.json").write_text('{"baseline": "ce", "primary": "accuracy"}')
    with pytest.raises(
        InputError, match=r"must hold at least one cell of the baseline, ce, got none in .*; wait for the first one"
    ):
        write_compare_report(folder)
    (folder / "results.jsonl").unlink()
    with pytest.raises(InputError, match="must hold at least one cell of the baseline, ce, got none"):
        write_compare_report(folder)
    assert not (folder / "report.html").exists()


def test_an_unknown_baseline_names_the_closest(make_compare: MakeCompare) -> None:
    folder = make_compare(seeds=2, baseline="sinkhor")
    with pytest.raises(InputError, match="did you mean 'sinkhorn'"):
        write_compare_report(folder)
