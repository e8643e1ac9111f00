"""The commands from end to end, on tiny settings: what they leave, say and refuse."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit._files import read_jsonl
from kdkit.cli import main
from kdkit.engine.callbacks import Recorder

pytestmark = pytest.mark.slow

TINY = [
    "experiment=digits",
    "student.model.width=2",
    "teacher.model.width=3",
    "teacher.train.max_steps=3",
    "engine.max_steps=4",
    "engine.batch_size=32",
    "engine.log_every=2",
    "engine.progress=none",
    "logger=[]",
]


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


def only_run(kind: str = "digits") -> Path:
    (found,) = (path for path in Path("runs", kind).iterdir() if path.is_dir())
    return found


def rows(path: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((path / "results.json").read_text())["rows"]}


def test_distill_leaves_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY) == 0
    path = only_run()
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "results.json", "report.html", "report.md"):
        assert (path / name).stat().st_size > 0, name
    assert list((path / "checkpoints").glob("step-*"))
    assert (path / "student" / "model.safetensors").is_file()
    assert set(rows(path)) == {"teacher", "student alone", "student distilled"}
    text = capsys.readouterr().out
    assert "trained now by its own recipe" in text
    assert f"report: {path}" in text
    networks = {record["network"] for record in read_jsonl(path / "metrics.jsonl")}
    assert networks == {"student", "student alone"}


def test_the_teacher_and_the_baseline_are_trained_once_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY, "run_dir=first") == 0
    capsys.readouterr()
    assert run("distill", *TINY, "run_dir=second") == 0
    text = capsys.readouterr().out
    assert text.count("taken from the store") == 2
    first, second = rows(Path("first")), rows(Path("second"))
    for name in first:
        assert first[name]["metrics"] == second[name]["metrics"]
    assert run("distill", *TINY, "run_dir=third", "teacher.train.seed=1") == 0
    assert "trained now by its own recipe" in capsys.readouterr().out


def test_a_sweep_over_seeds_makes_a_run_each() -> None:
    assert run("distill", *TINY, "engine.baseline=false", "engine.report=false", "seed=0,1", "-m") == 0
    seeds = [json.loads(path.read_text())["seed"] for path in Path("runs").rglob("results.json")]
    assert sorted(seeds) == [0, 1]


def test_resume_goes_on_where_ctrl_c_stopped_and_ends_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("distill", *TINY, "run_dir=whole") == 0
    record = Recorder.on_train

    def press(self: Recorder, entry: dict) -> None:
        record(self, entry)
        if self.network == "student" and entry["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_train", press)
    assert run("distill", *TINY, "run_dir=parted") == 130
    assert "kdkit distill resume=parted" in capsys.readouterr().out
    assert not (Path("parted") / "results.json").exists()
    monkeypatch.setattr(Recorder, "on_train", record)
    assert run("distill", "resume=parted") == 0
    whole, parted = (load_file(Path(name) / "student" / "model.safetensors") for name in ("whole", "parted"))
    assert all(torch.equal(whole[name], parted[name]) for name in whole)
    steps = [entry["step"] for entry in read_jsonl(Path("parted/metrics.jsonl")) if entry["network"] == "student"]
    assert steps == sorted(steps)


def test_resume_with_other_settings_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY, "run_dir=done") == 0
    assert run("distill", *TINY, "resume=done", "optim.lr=0.5") == 2
    assert "was started with optim.lr=0.05, now optim.lr=0.5" in capsys.readouterr().err
    assert run("distill", "resume=nowhere") == 2
    assert "nowhere is no kdkit run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "losses",
    ["ce,kd,js", "ce,kl,reverse_kl", "ce,sinkhorn", "ce,nkd", "ce,kd,nd", "ce,bdkd", "ce,bdkd_offline", "sinkd_paper"],
)
def test_every_loss_distils(losses: str) -> None:
    quick = ["engine.baseline=false", "engine.report=false", "engine.export=false"]
    assert run("distill", *TINY, *quick, f"loss=[{losses}]", "run_dir=out") == 0
    record = [line for line in read_jsonl("out/metrics.jsonl") if line["event"] == "train"][-1]
    assert record["terms"]
    assert all(value is not None for value in record["terms"].values())


def test_online_distillation_trains_the_teacher_too() -> None:
    assert run("distill", *TINY, "loss=[ce,bdkd]", "run_dir=out") == 0
    result = rows(Path("out"))
    assert "learns together with the student" in result["teacher"]["origin"]
    terms = read_jsonl("out/metrics.jsonl")[-2]["terms"]
    assert "teacher/ce" in terms
    assert json.loads(Path("out/results.json").read_text())["online"] is True


def test_an_ensemble_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY, "teacher.ensemble=2", "run_dir=out") == 0
    teacher = rows(Path("out"))["teacher"]
    assert teacher["network"] == "2 networks"
    assert "member 2" in teacher["origin"]


def test_train_evaluate_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *TINY, "run_dir=alone") == 0
    assert set(rows(Path("alone"))) == {"student"}
    capsys.readouterr()
    assert run("evaluate", "run=alone") == 0
    evaluation = json.loads(Path("alone/evaluation-test.json").read_text())
    assert evaluation["row"]["metrics"] == pytest.approx(rows(Path("alone"))["student"]["metrics"])
    assert run("evaluate", "run=alone", "split=val") == 0
    assert run("train", *TINY, "network=teacher", "run_dir=teacher") == 0
    assert run("report", "alone") == 0
    assert "report" in capsys.readouterr().out


def test_a_teacher_trained_by_hand_is_the_one_that_distill_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *TINY, "network=teacher", "run_dir=teacher") == 0
    capsys.readouterr()
    assert run("distill", *TINY, "run_dir=out") == 0
    assert "taken from the store" in capsys.readouterr().out


def test_given_weights_are_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *TINY, "student.model.width=3", "run_dir=big") == 0
    assert run("distill", *TINY, "teacher.weights=big/student", "run_dir=out") == 0
    assert "loaded from big/student" in capsys.readouterr().out
    assert run("distill", *TINY, "teacher.weights=gone.safetensors") == 2
    assert "gone.safetensors" in capsys.readouterr().err


def test_compare_ranks_methods_and_goes_on_after_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "losses=[ce,kd,nkd]", "seeds=2", "workers=1", "run_dir=board"]
    assert run("compare", *options) == 0
    records = read_jsonl("board/results.jsonl")
    assert sorted((record["method"], record["seed"]) for record in records) == [
        (method, seed) for method in ("ce", "kd", "nkd") for seed in (0, 1)
    ]
    assert all(record["status"] == "ok" for record in records)
    for name in ("report.html", "report.md", "leaderboard.json", "compare.json", "config.yaml"):
        assert (Path("board") / name).is_file()
    text = capsys.readouterr().out
    assert "baseline" in text
    lines = Path("board/results.jsonl").read_text().splitlines()
    Path("board/results.jsonl").write_text("\n".join(lines[:4]) + "\n")
    assert run("compare", *options[:-1], "resume=board") == 0
    again = {(record["method"], record["seed"]): record["metrics"] for record in read_jsonl("board/results.jsonl")}
    assert again == {(record["method"], record["seed"]): record["metrics"] for record in records}
    assert run("compare", *options[:-1], "resume=board", "optim.lr=0.5") == 2
    assert "with other settings" in capsys.readouterr().err


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "losses=[kd,nkd]", "seeds=1", "workers=1", "run_dir=board", "weights.nkd=1e38"]
    assert run("compare", *options) == 2
    status = {record["method"]: record["status"] for record in read_jsonl("board/results.jsonl")}
    assert status == {"ce": "ok", "kd": "ok", "nkd": "failed"}
    assert "1 of 3 cells failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["student.model.num_classes=7"], "the student has 7 classes and the teacher 10"),
        (["run_dir=/proc/none"], "run_dir=/proc/none cannot be written"),
        (["optim.lr=1e30"], "became NaN or infinite"),
        (["engine.batch_size=5000"], "engine.batch_size must not exceed the training split, got 5000"),
        (["teacher.weights=teacher.pth"], "teacher.pth"),
        (["student=null"], "student"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("teacher.pth").write_bytes(b"PK")
    assert run("distill", *TINY, "engine.baseline=false", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("kdkit: ")
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher.model.in_chans=3"], "teacher.model cannot take a batch of data 'digits'"),
        (["teacher.model.num_classes=7"], "the networks have 7 classes and the data 10"),
        (["loss=[ce,nd]", "features.penultimate.student=layer9"], "features.penultimate.student=layer9: "),
        (["optim.lr=-1"], "Invalid learning rate"),
        (["data=image_folder", "data.root=gone"], "gone does not exist"),
        (["engine.precision=fp16", "engine.device=cpu"], "engine.precision=fp16 needs a CUDA device"),
        (["teacher.train.optim.lr=1e38", "teacher.train.max_steps=1"], "the teacher answers NaN"),
    ],
)
def test_a_refused_run_leaves_nothing(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("distill", *TINY, "engine.baseline=false", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_tracker_that_is_not_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: False)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    assert run("distill", *TINY[:-1], "logger=[wandb]") == 2
    assert "loggers.wandb is not installed" in capsys.readouterr().err


def test_a_finished_run_that_is_resumed_stays_as_it_is() -> None:
    assert run("distill", *TINY, "run_dir=done") == 0
    before = [(line["network"], line["event"], line["step"]) for line in read_jsonl("done/metrics.jsonl")]
    command = json.loads(Path("done/results.json").read_text())["command"]
    weights = load_file("done/student/model.safetensors")
    (Path("done") / ".results.json.tmp-1-aa").write_text("left by a kill")
    lines = Path("done/metrics.jsonl").read_text().splitlines()
    Path("done/metrics.jsonl").write_text("\n".join(lines[1:]) + "\n")  # killed while the baseline's curve was copied
    assert run("distill", "resume=done") == 0
    again = [(line["network"], line["event"], line["step"]) for line in read_jsonl("done/metrics.jsonl")]
    assert again == before
    assert json.loads(Path("done/results.json").read_text())["command"] == command
    assert not (Path("done") / ".results.json.tmp-1-aa").exists()
    assert all(torch.equal(value, weights[name]) for name, value in load_file("done/student/model.safetensors").items())


def test_resume_knows_the_steps_that_a_schedule_was_given() -> None:
    schedule = "{_target_: timm.scheduler.CosineLRScheduler, t_initial: '${spec.steps}', t_in_epochs: false}"
    quick = ["engine.baseline=false", "engine.report=false"]
    assert run("distill", *TINY, *quick, "~scheduler", f"+scheduler={schedule}", "run_dir=done") == 0
    weights = load_file("done/student/model.safetensors")
    shutil.rmtree("done/checkpoints")
    assert run("distill", "resume=done") == 0
    assert all(torch.equal(value, weights[name]) for name, value in load_file("done/student/model.safetensors").items())


def test_resume_needs_the_command_that_started_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *TINY, "engine.report=false", "run_dir=alone") == 0
    assert run("distill", "resume=alone") == 2
    assert "resume=alone is a run of kdkit train" in capsys.readouterr().err
    assert run("train", "resume=alone") == 0


def test_compare_chooses_among_as_many_evaluations_as_asked() -> None:
    options = [*TINY, "losses=[kd]", "seeds=1", "workers=1", "run_dir=board", "engine.select=best"]
    assert run("compare", *options, "engine.max_steps=80") == 0
    events = [line["event"] for line in read_jsonl("board/cells/kd-s0/metrics.jsonl")]
    assert events.count("eval") > 1


@pytest.mark.slow
def test_workers_of_a_killed_comparison_end_too() -> None:
    words = ["compare", *TINY, "engine.max_steps=2000", "losses=[ce,kd]", "seeds=2", "workers=2", "run_dir=board"]
    main_process = subprocess.Popen([sys.executable, "-m", "kdkit.cli", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (workers := _children(main_process.pid)) or len(list(Path("board/cells").glob("*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    main_process.kill()
    main_process.wait()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _children(parent: int) -> list[str]:
    """Processes of this parent, from /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rsplit(")", 1)[1].split()[1] == str(parent):
                found.append(path.parent.name)
    return found


@pytest.mark.slow
def test_two_processes_make_one_run_and_resume_it_to_the_same_numbers() -> None:
    quick = ["engine.report=false", "engine.export=false", "engine.ema=0.9", "loss=[ce,kd,nd]", "weights.nd=0"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "kdkit.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*launch, "distill", *TINY, *quick], env=environment, check=True, timeout=300)
    path = only_run()
    first = rows(path)["student distilled"]["metrics"]
    assert json.loads((path / "results.json").read_text())["summary"]["processes"] == 2
    subprocess.run([*launch, "distill", f"resume={path}"], env=environment, check=True, timeout=300)
    assert rows(path)["student distilled"]["metrics"] == first


def test_a_folder_with_something_in_it_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("important")
    assert run("distill", *TINY, "run_dir=mine") == 2
    assert "is there already and not empty" in capsys.readouterr().err
    assert Path("mine/thesis.txt").read_text() == "important"


def test_an_ensemble_of_different_networks_may_have_members_of_its_own() -> None:
    member = "{model: {_target_: kdkit.models.mlp, num_classes: '${spec.num_classes}', image_size: 8}}"
    assert run("distill", *TINY, "engine.baseline=false", f"teacher.members=[{member}]", "run_dir=out") == 0
    assert rows(Path("out"))["teacher"]["network"] == "2 networks"


def test_a_pretrained_classifier_of_the_same_classes_is_used_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    timm_student = ["student=resnet18_micro", "student.model.channels=[4,4,4,4]"]
    assert run("train", *TINY[:1], *TINY[4:], *timm_student, "run_dir=big") == 0
    capsys.readouterr()
    teacher = ["teacher=timm", f"teacher.model.name=local-dir:{Path('big/student').absolute()}"]
    assert run("distill", "experiment=digits", *teacher, *TINY[4:], "run_dir=out") == 0
    assert "as they come" in capsys.readouterr().out
