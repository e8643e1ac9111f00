"""Reports for what the command line was given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdkit._files import write_json
from kdkit.errors import InputError
from kdkit.report import write_reports

Make = Callable[..., Path]


def seeded(make_run: Make, loss: str, seed: int, gain: float, **settings: Any) -> Path:
    folder = make_run(f"sweep/{loss}-{seed}", events=False, seed=seed, losses={"ce": 1.0, loss: 1.0})
    results = json.loads((folder / "results.json").read_text())
    for row in results["rows"]:
        row.pop("extras")
    results["rows"][1]["metrics"]["accuracy"] = 0.93 + 0.002 * seed
    results["rows"][2]["metrics"]["accuracy"] = 0.93 + 0.002 * seed + gain + 0.001 * (-1) ** seed
    write_json(folder / "results.json", results)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "loss": {"ce": {}, loss: {}}, **settings}))
    return folder


def test_one_run_and_one_comparison(make_run: Make, make_compare: Make) -> None:
    run, comparison = make_run(events=False), make_compare(seeds=2)
    assert write_reports([run]) == [run / "report.html"]
    assert write_reports([comparison, run, run]) == [comparison / "report.html", run / "report.html"]
    assert not (run.parent / "comparison.html").exists()


def test_several_runs_get_one_page(make_run: Make) -> None:
    folders = [seeded(make_run, loss, seed, gain) for loss, gain in (("kd", 0.03), ("nkd", 0.0)) for seed in range(4)]
    written = write_reports(folders)
    assert written[:-1] == [folder / "report.html" for folder in folders]
    assert written[-1] == folders[0].parent / "comparison.html"
    page = written[-1].read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "8 runs" in page and "ce + kd, seed 2" in page and 'href="nkd-3/report.html"' in page
    assert "ce + kd: 96.3 ± 0.2 % over 4 seeds, +3.0 points against the same student alone; it helps." in page
    assert "ce + nkd: " in page and "no difference shown." in page
    markdown = written[-1].with_suffix(".md").read_text(encoding="utf-8")
    assert "| ce + kd, seed 0 | resnet8 (width 4) | 96.1 % | 93.0 % | +3.1 points | 98.2 % |" in markdown
    assert "\n\n\n" not in markdown
    assert (folders[0].parent / "plots" / "comparison-differences.png").exists()


def test_settings_that_differ_are_named(make_run: Make) -> None:
    folders = [seeded(make_run, "kd", 0, 0.01, engine={"lr": 0.1}), seeded(make_run, "kd", 1, 0.01, engine={"lr": 0.2})]
    page = write_reports(folders)[-1].read_text(encoding="utf-8")
    assert "ce + kd, engine.lr=0.1, seed 0" in page and "ce + kd, engine.lr=0.2, seed 1" in page
    assert "Over the seeds" not in page


def test_runs_without_configs_or_on_other_data(make_run: Make) -> None:
    first = make_run("a", events=False)
    second = make_run("b", events=False, data={"name": "other", "fingerprint": "00", "test": 10})
    for folder in (first, second):
        (folder / "config.yaml").unlink()
    page = write_reports([first, second])[-1].read_text(encoding="utf-8")
    assert "did not all see the same data" in page
    assert "ce + kd, seed 0 [a]" in page and "ce + kd, seed 0 [b]" in page


def test_bad_input_writes_nothing(make_run: Make, tmp_path: Path) -> None:
    run, text = make_run(events=False), make_run("text", modality="text", events=False)
    with pytest.raises(InputError, match="must name at least one run"):
        write_reports([])
    with pytest.raises(InputError, match="a run must be a folder"):
        write_reports([run, tmp_path / "nowhere"])
    with pytest.raises(InputError, match="must share one primary metric, got accuracy and perplexity"):
        write_reports([run, text])
    assert not (run / "report.html").exists()
