"""Cells of a benchmark table as jobs: the launcher's settings, a stand-in for SLURM's commands, jobs that die."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables._cluster import Launcher, _Jobs, launcher_of, run_in_jobs
from kdkit._files import sha256_json
from kdkit._run.cells import Cell
from kdkit.errors import ConfigError, KdkitError

ROOT = Path(__file__).parents[1]
WORDS = ["table=digits", "rows=kd", "seeds=1", "engine.epochs=2", "teacher.train.epochs=1", "engine.checkpoint_every=1"]

COMMANDS = {
    "srun": """
while [[ "$1" == --* ]]; do
  case "$1" in
    --output | --error) shift 2 ;;
    *) shift ;;
  esac
done
exec "$@"
""",
    "sbatch": """
script="${@: -1}"
number=$(( $(cat $FAKE_SLURM/last 2>/dev/null || echo 100) + 1 ))
echo $number > $FAKE_SLURM/last
export SLURM_JOB_ID=$number SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_JOB_NODELIST=node1
setsid bash "$script" > /dev/null 2>&1 &
echo $! > $FAKE_SLURM/$number
for _ in $(seq 100); do kill -0 -$! 2>/dev/null && break; sleep 0.02; done
echo "Submitted batch job $number"
""",
    "sacct": """
echo "JobID|State|NodeList"
for word in "$@"; do
  case "$word" in
    [0-9]*) kill -0 -$(cat $FAKE_SLURM/$word) 2>/dev/null && state=RUNNING || state=COMPLETED
            echo "$word|$state|node1" ;;
  esac
done
""",
    "scancel": "kill -9 -$(cat $FAKE_SLURM/$1); touch $FAKE_SLURM/cancelled-$1",
}
"""What of SLURM's commands submitit calls, with the processes of this machine as jobs."""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which jobs can be submitted."""
    pytest.importorskip("submitit")
    commands, state = tmp_path / "commands", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name, text in COMMANDS.items():
        path = commands / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "FAKE_SLURM": str(state),
        "PYTHONPATH": str(ROOT),
    }


def run(*words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.tables", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def measured(folder: Path) -> dict[tuple[str, int], Any]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {(line["method"], line["seed"]): (line["metrics"], line["best"]) for line in lines}


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_of_the_jobs() -> None:
    assert launcher_of({"table": "digits", "workers": "2"}) is None
    found = launcher_of({"launcher": "slurm", "launcher.timeout_min": "60", "launcher.slurm_partition": "gpu"})
    expected = {"timeout_min": 60, "cpus_per_task": 8, "gpus_per_node": 1, "slurm_partition": "gpu"}
    assert found == Launcher("slurm", expected)
    assert found.described() == "slurm (timeout_min=60, cpus_per_task=8, gpus_per_node=1, slurm_partition=gpu)"
    assert launcher_of({"launcher": "slurm", "launcher.gpus_per_node": "null"}).parameters["gpus_per_node"] is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"launcher": "slrum"}, "launcher must be slurm or local, got 'slrum'; did you mean 'slurm'?"),
        ({"launcher.timeout_min": "5"}, "launcher.timeout_min needs a launcher; add launcher=slurm or local"),
        ({"launcher": "slurm", "launcher.nodes": "2"}, "launcher.nodes must be 1, got 2"),
    ],
)
def test_wrong_settings_are_refused(own: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace(".", r"\.")):
        launcher_of(own)


def test_no_slurm_and_unknown_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs SLURM's commands"):
        Launcher("slurm", {}).executor(tmp_path / "jobs")
    with pytest.raises(ConfigError, match=r"submitit refuses: .*timeout_minutes"):
        Launcher("local", {"timeout_minutes": 5}).executor(tmp_path / "jobs")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'kdkit\[launchers\]'"):
        Launcher("local", {}).executor(tmp_path / "jobs")


# ---- jobs ----------------------------------------------------------------------------------------------------------


def work(cell: Cell) -> dict[str, Any]:
    """A cell that dies without a word, or says its seed."""
    if cell.method == "dies":
        os._exit(3)
    return {"seed": cell.seed, "status": "ok"}


def lost(cell: Cell, error: Exception) -> dict[str, Any]:
    return {"seed": cell.seed, "status": "failed", "error": str(error)}


@pytest.mark.slow
def test_a_job_that_dies_is_a_record_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = [Cell(method, seed, {}, f"{method}{seed}") for seed, method in enumerate(("lives", "dies", "lives"))]
    first = partial(Path.touch, tmp_path / "first")
    found = list(run_in_jobs(Launcher("local", {"timeout_min": 5}), tmp_path, cells, 2, work, lost, first))
    by_seed = {record["seed"]: record for record in found}
    assert (tmp_path / "first").exists() and len(found) == 3
    assert by_seed[0]["status"] == by_seed[2]["status"] == "ok"
    assert "ended without a result" in by_seed[1]["error"] and "launcher.timeout_min" in by_seed[1]["error"]
    assert json.loads((tmp_path / "jobs" / "jobs.json").read_text()) == {}


def teachers(path: Path) -> None:
    """Fails the first time."""
    if not path.exists():
        path.touch()
        raise KdkitError("the teacher diverged")


@pytest.mark.slow
def test_teachers_that_failed_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    launcher, first = Launcher("local", {"timeout_min": 5}), partial(teachers, tmp_path / "first")
    cells = [Cell("lives", 0, {}, "lives0")]
    with pytest.raises(KdkitError, match=r"missing teachers\) failed: .*the teacher diverged"):
        list(run_in_jobs(launcher, tmp_path, cells, 2, work, lost, first))
    assert [record["status"] for record in run_in_jobs(launcher, tmp_path, cells, 2, work, lost, first)] == ["ok"]


def waits(cell: Cell) -> dict[str, Any]:
    """A cell that says its settings, after a while."""
    time.sleep(cell.settings["seconds"])
    return {"seed": cell.seed, "status": "ok", **cell.settings}


@pytest.mark.slow
def test_a_job_with_other_settings_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    launcher, first = Launcher("local", {"timeout_min": 5}), partial(Path.touch, tmp_path / "first")
    jobs = _Jobs(launcher, tmp_path)  # as a killed command leaves them
    old = Cell("waits", 0, {"seconds": 20}, "waits0")
    job = jobs.start(old.folder, sha256_json(old.settings), waits, old)
    cells = [Cell("waits", 0, {"seconds": 0}, "waits0")]
    with pytest.raises(ConfigError, match=f"job {job.job_id} of an earlier command runs waits0 with other settings"):
        list(run_in_jobs(launcher, tmp_path, cells, 2, waits, lost, first))
    job._process.kill()
    job._process.wait()
    [record] = run_in_jobs(launcher, tmp_path, cells, 2, waits, lost, first)
    assert record["seconds"] == 0


@pytest.mark.slow
def test_a_table_on_slurm_killed_and_continued_is_the_table_made_here(tmp_path: Path, slurm: dict[str, str]) -> None:
    """The command is killed while a cell's job runs: the job goes on, and the same command waits for it."""
    here = run(*WORDS, f"out={tmp_path / 'here'}", environment=slurm)
    assert here.returncode == 0, here.stderr
    out, state = tmp_path / "there", Path(slurm["FAKE_SLURM"])
    words = [*WORDS, f"out={out}", "launcher=slurm", "workers=2", "launcher.slurm_partition=gpu"]
    command = [sys.executable, "-m", "benchmarks.tables", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=slurm, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(out.glob("cells/*/*/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    jobs = int((state / "last").read_text())
    again = run(*words, environment=slurm)
    assert again.returncode == 0, again.stderr + again.stdout
    assert int((state / "last").read_text()) <= jobs + 1  # teachers again, which are there; no cell twice
    assert measured(out) == measured(tmp_path / "here") and len(measured(out)) == 2
    scripts = "".join(path.read_text() for path in out.glob("jobs/*.sh"))
    assert "--partition=gpu" in scripts and "--gpus-per-node=1" in scripts
    facts = json.loads((out / "table.json").read_text())["sessions"]
    assert facts[-1]["processor"] is None and "slurm (timeout_min=1440" in facts[-1]["jobs"]
    assert "jobs at a time, slurm" in (out / "table.md").read_text()


@pytest.mark.slow
def test_ctrl_c_cancels_the_jobs(tmp_path: Path, slurm: dict[str, str]) -> None:
    out = tmp_path / "out"
    words = [*WORDS, f"out={out}", "launcher=slurm", "engine.epochs=2000"]
    command = [sys.executable, "-m", "benchmarks.tables", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(out.glob("cells/*/*/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors
    assert len(list(Path(slurm["FAKE_SLURM"]).glob("cancelled-*"))) == 2
