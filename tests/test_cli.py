"""The command line as a user meets it: help, dispatch, errors and exit statuses, sweeps, listings."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import kdkit
from kdkit._config.context import Context
from kdkit.cli import COMMANDS, main
from kdkit.errors import DataError

Calls = list[tuple[DictConfig, Context]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in a folder of its own; Hydra sets up logging anew, which others must not see."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Commands that note how they were called instead of training."""
    import kdkit.run

    seen: Calls = []
    for command in ("distill", "train", "cache", "evaluate", "compare"):
        monkeypatch.setattr(kdkit.run, command, lambda cfg, context: seen.append((cfg, context)))
    return seen


def mistake(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """The one line that a wrong command line prints."""
    assert main(list(words)) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("kdkit: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def mine(tmp_path: Path, name: str, text: str) -> list[str]:
    """Write a recipe of the user's; returns the words that add its folder."""
    file = tmp_path / "mine" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return ["--config-dir", str(tmp_path / "mine")]


# Help, version, dispatch


def test_help_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"kdkit {command} " in text
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from kdkit.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'hydra', 'omegaconf', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdkit {kdkit.__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["distil"], "unknown command 'distil'; did you mean 'distill'?"),
        (
            ["frobnicate"],
            "unknown command 'frobnicate'; choose from distill, train, cache, evaluate, compare, report, ls",
        ),
        (["experiment=digits"], "write kdkit distill experiment=digits"),
        (["--seed"], "the command comes first"),
        (["report"], "report needs the folders of runs"),
        (["report", "nowhere"], "report takes folders of runs, and 'nowhere' is none"),
        (["ls", "lossess"], "ls knows no topic 'lossess'; did you mean 'losses'?"),
        (["ls", "layers"], "ls layers needs a network"),
        (["ls", "recipes", "losss"], "there is no group 'losss'; did you mean 'loss'"),
        (["ls", "losses", "nkdd"], "no loss matches 'nkdd'; did you mean 'nkd'"),
        (["ls", "losses", "a", "b"], "ls losses takes one pattern"),
        (["ls", "losses", "--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
        (["ls", "layers", "model=resnet9"], "student has no option 'resnet9'; did you mean 'resnet8'"),
    ],
)
def test_wrong_commands(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in mistake(capsys, *words)


# Mistakes in settings


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["loss=[ce,nkdd]"], "loss has no option 'nkdd'; did you mean 'nkd'"),
        (["weights.nkdd=1"], "weights has no setting 'nkdd'; did you mean 'nkd'"),
        (["weights.nkd=1"], "weights.nkd belongs to a loss that is not chosen; choose it with 'loss=[ce,kd,nkd]'"),
        (["student=resnet9"], "student has no option 'resnet9'; did you mean 'resnet8'"),
        (["engine.epoch=3"], "engine has no setting 'epoch'; did you mean 'epochs'"),
        (["engin.epochs=3"], "there is no setting 'engin'; did you mean 'engine'"),
        (["losss=ce"], "there is no setting 'losss'; did you mean 'loss'"),
        (["experiment=fasion_mnist"], "experiment has no option 'fasion_mnist'; did you mean 'fashion_mnist'"),
        (["optim@teacher.train.optim=adamm"], "optim has no option 'adamm'; did you mean 'adam'"),
        (["optim.nestrov=true"], "optim (torch.optim.SGD) has no setting 'nestrov'; did you mean 'nesterov'"),
        (["optim.dampening=0"], "optim.dampening is an option of torch.optim.SGD that its recipe leaves out; "
                                "add it with a plus: +optim.dampening="),
        (["optim.lr.x=1"], "optim.lr.x cannot be set: optim.lr is a plain value (0.05)"),
        (["teacher=none", "teacher.ensemble=3"], "teacher.ensemble cannot be set while teacher is null"),
        (["student=null"], "'student=null' must name options of the group student: "),
        (["teacher=null"], "for none of them write teacher=none"),
        (["loss=[ce"], "cannot read the override 'loss=[ce'; write key=value, with quotes around lists"),
        (["optim"], "'optim' is no override; write key=value"),
        (["seed=1,2"], "'seed=1,2' names several values; add -m to run one job for each"),
        (["seed=range(3)"], "'seed=range(3)' names several values; add -m"),
        (["~engine.foo"], "Could not delete from config. 'engine.foo' does not exist."),
        (["optim.lr=${optim.rl}"], "optim.lr: Interpolation key 'optim.rl' not found"),
        (["data=nothing/at/all"], "unknown group 'data/nothing/at'"),
        (["--config-name", "digitz"], "there is no configuration 'digitz'"),
        (["--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
        (["--config-path", "x"], "--config-path would take kdkit's recipes away"),
        (["--experimental-rerun", "x.pickle"], "--experimental-rerun reads a pickle"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["--cfg", "job", "--package", "losss"], "'losss' names no part of the settings; did you mean 'loss'"),
        (["--resolve"], "The --resolve flag can only be used in conjunction with --cfg"),
        (["--cfg", "job", "--run"], "Only one of --run, --multirun, --cfg, --info"),
        (["trust=[a-b]"], "trust must list packages"),
        (["optim._target_=os.system"], "optim: _target_ 'os.system' is not among what kdkit lets a recipe call"),
        (["loss.kd.temperature=-1"], "temperature"),
    ],
)  # fmt: skip
def test_wrong_settings(words: list[str], text: str, capsys: pytest.CaptureFixture[str], calls: Calls) -> None:
    assert text in mistake(capsys, "distill", *words)
    assert not calls
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("# @package _global_\noptim:\n  lr: 1\n lr: 2\n", "typo.yaml, line 4"),
        ("# @package _global_\nseed: 1\nseed: 2\n", "found duplicate key seed"),
        ("# @package _global_\nengine: {epoch: 3}\n", "engine has no setting 'epoch'; did you mean 'epochs'"),
        ("# @package _global_\ndefaults:\n  - override /losss: [ce]\n", "losss"),
        ("# @package _global_\ndefaults:\n  - override /loss: [cee]\n", "loss has no option 'cee'; did you mean 'ce'"),
        ("# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n", "is no plugin of Hydra"),
    ],
)
def test_wrong_recipes(
    content: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: Calls
) -> None:
    words = mine(tmp_path, "experiment/typo", content)
    assert text in mistake(capsys, "distill", "experiment=typo", *words)
    assert not calls


def test_evaluate_needs_a_run(capsys: pytest.CaptureFixture[str], calls: Calls) -> None:
    assert "run must be given; add run=" in mistake(capsys, "evaluate")
    assert main(["evaluate", "run=somewhere", "data=digits", "data.labels=10", "engine.eval_batch_size=5"]) == 0
    (cfg, context), *_ = calls
    assert cfg.run == "somewhere" and cfg.data.labels == 10
    assert context.command == "evaluate"
    assert "engine has no setting 'epochs'" in mistake(capsys, "evaluate", "run=x", "engine.epochs=3")


# What reaches the command


def test_a_command_gets_its_settings_and_its_context(calls: Calls, tmp_path: Path) -> None:
    words = ["loss=[ce,nkd]", "weights.nkd=0.5", "name=a b"]
    assert main(["distill", *words]) == 0
    ((cfg, context),) = calls
    assert cfg.weights.nkd == 0.5
    assert context.overrides == tuple(words)
    assert context.command_line == "kdkit distill 'loss=[ce,nkd]' weights.nkd=0.5 'name=a b'" == context.job_line
    assert (context.multirun, context.output_dir) == (False, None)
    assert not list(tmp_path.iterdir())


def test_the_command_line_wins_over_an_experiment_and_that_over_the_base(calls: Calls, tmp_path: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /loss: [ce, js]\nseed: 7\nengine: {epochs: 3}\n"
    folder = mine(tmp_path, "experiment/own", text)
    assert main(["distill", "experiment=own", *folder]) == 0
    assert main(["distill", "experiment=own", "seed=8", "loss=[ce,kd]", *folder]) == 0
    assert main(["train", "experiment=own", "network=teacher", *folder]) == 0
    assert main(["train", "experiment=own", "loss=[ce]", *folder]) == 0
    (first, _), (second, _), (alone, _), _ = calls
    assert (list(first.loss), first.seed, first.engine.epochs) == (["ce", "js"], 7, 3)
    assert (list(second.loss), second.seed, second.engine.epochs) == (["ce", "kd"], 8, 3)
    assert (list(alone.loss), alone.seed, alone.network) == (["ce"], 7, "teacher")


def test_a_sweep_runs_a_job_per_value_in_a_folder_of_its_own(calls: Calls, tmp_path: Path) -> None:
    assert main(["distill", "seed=4", "-m", "loss=[ce],[ce,kd]", "name=s"]) == 0
    assert [(cfg.seed, list(cfg.loss)) for cfg, _ in calls] == [(4, ["ce"]), (4, ["ce", "kd"])]
    folders = [Path(cfg.run_dir) for cfg, _ in calls]
    assert len(set(folders)) == 2
    assert all(folder.is_dir() and folder.parents[2] == tmp_path / "runs" for folder in folders)
    context = calls[1][1]
    assert context.multirun and context.job == 1
    assert context.job_line == "kdkit distill seed=4 'loss=[ce,kd]' name=s"


def test_a_sweep_with_a_folder_given(calls: Calls, tmp_path: Path) -> None:
    assert main(["distill", "seed=0,1", "-m", f"run_dir={tmp_path}/all"]) == 0
    assert [cfg.run_dir for cfg, _ in calls] == [f"{tmp_path}/all/0", f"{tmp_path}/all/1"]
    assert "run_dir" not in calls[0][1].job_line


def test_every_job_of_a_sweep_is_checked_before_the_first(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert "engine.batch_size must be a whole number" in mistake(capsys, "distill", "-m", "engine.batch_size=8,0")
    assert "student has no option 'resnet9'" in mistake(capsys, "distill", "-m", "student=resnet8,resnet9")
    assert not calls


def test_a_failing_job_does_not_stop_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def distill(cfg: DictConfig, context: Context) -> None:
        seen.append(cfg.seed)
        if cfg.seed == 1:
            raise DataError("no file; look for it")

    monkeypatch.setattr("kdkit.run.distill", distill)
    assert main(["distill", "seed=1,2", "-m"]) == 2
    assert seen == [1, 2]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kdkit: ")]
    assert lines == [
        "kdkit: job 0 (seed=1): no file; look for it",
        "kdkit: 1 of 2 jobs of the sweep failed, the first with: no file; look for it",
    ]


def test_compare_composes_every_loss_so_that_all_can_be_set(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "losses=[ce,kd,kd+js]", "weights.js=0.5", "seeds=2"]) == 0
    ((cfg, context),) = calls
    assert set(cfg.loss) == {"ce", "kd", "js"} and cfg.weights.js == 0.5
    assert context.command_line == "kdkit compare 'losses=[ce,kd,kd+js]' weights.js=0.5 seeds=2"
    assert "weights.nkd belongs to a loss of no method" in mistake(capsys, "compare", "losses=[ce,kd]", "weights.nkd=1")
    assert "names no loss recipe 'kdd'; did you mean 'kd'" in mistake(capsys, "compare", "losses=[ce,kdd]")
    assert "not as loss=" in mistake(capsys, "compare", "loss=[ce,kd]")
    assert "method 'kd': loss.kd learns from" in mistake(capsys, "compare", "losses=[kd]", "teacher=none")


def test_a_package_of_the_users_in_the_current_folder(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ownpkg.py").write_text(
        "from kdkit.losses import KDLoss\nclass OwnLoss(KDLoss):\n    '''My own.'''\n", encoding="utf-8"
    )
    text = "# @package _global_\nloss:\n  own: {_target_: ownpkg.OwnLoss, temperature: 2.0}\nweights: {own: 1.0}\n"
    words = ["distill", "loss=[ce,own]", *mine(tmp_path, "loss/own", text)]
    assert "add trust=[ownpkg] on the command line" in mistake(capsys, *words)
    assert main([*words, "trust=[ownpkg]"]) == 0
    assert list(calls[0][0].loss) == ["ce", "own"]
    assert str(tmp_path) not in sys.path


# Hydra's own flags


def test_cfg_prints_the_settings(capsys: pytest.CaptureFixture[str], calls: Calls) -> None:
    assert main(["distill", "--cfg", "job", "seed=3"]) == 0
    text = capsys.readouterr().out
    assert "seed: 3" in text and "hydra:" not in text and "num_classes: ${spec.num_classes}" in text
    assert main(["distill", "--cfg", "job", "--resolve", "--package", "student.model", "spec.num_classes=10"]) == 0
    assert "num_classes: 10" in capsys.readouterr().out
    assert not calls


def test_info_and_help(capsys: pytest.CaptureFixture[str], tmp_path: Path, calls: Calls) -> None:
    assert main(["distill", "--info", "searchpath"]) == 0
    assert "recipes" in capsys.readouterr().out
    folder = mine(tmp_path, "student/ownnet", "model: {}\n")
    for command in ("distill", "train", "cache", "evaluate", "compare"):
        assert main([command, "--help", *folder]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"kdkit {command}: ")
        assert "ownnet" in text and "nkd" in text and "_train" not in text
    assert main(["distill", "--hydra-help"]) == 0
    assert "hydra/launcher" in capsys.readouterr().out
    assert not calls


# What becomes of errors


def test_a_fault_keeps_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(cfg: Any, context: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("kdkit.run.distill", broken)
    line = mistake(capsys, "distill", status=1)
    assert line.startswith("kdkit: internal error: ZeroDivisionError: division by zero; the traceback is in ")
    file = Path(line.split("the traceback is in ")[1].split(";")[0].removesuffix(", please report it\n"))
    assert "in broken" in file.read_text(encoding="utf-8")
    file.unlink()


def test_the_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["distill", "engine.epoch=3"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text and text.splitlines()[-1].startswith("kdkit: engine has no setting 'epoch'")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_interruption_and_unwritable_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cfg: Any, context: Any) -> None:
        raise KeyboardInterrupt

    def full(cfg: Any, context: Any) -> None:
        raise PermissionError(13, "Permission denied", "/closed/x")

    monkeypatch.setattr("kdkit.run.distill", interrupted)
    assert mistake(capsys, "distill", status=130) == "kdkit: interrupted\n"
    monkeypatch.setattr("kdkit.run.distill", full)
    assert "cannot write /closed/x: Permission denied; choose another folder" in mistake(capsys, "distill")
    assert "HYDRA_FULL_ERROR" not in os.environ


# Listings


def test_ls_losses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "losses"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "NKDLoss" in lines["nkd"] and "labels" in lines["nkd"] and "2303.13005" in lines["nkd"]
    assert "features.penultimate" in lines["nd"]
    assert main(["ls", "losses", "nk*"]) == 0
    assert "js" not in capsys.readouterr().out.split()


def test_ls_recipes_models_and_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = mine(tmp_path, "experiment/own", "# @package _global_\n# kdkit distill experiment=own\nseed: 1\n")
    assert main(["ls", "recipes", *folder]) == 0
    text = capsys.readouterr().out
    assert "kdkit distill experiment=own" in text and "_train" not in text
    assert main(["ls", "models"]) == 0
    assert "small_cnn" in capsys.readouterr().out
    assert main(["ls", "data"]) == 0
    assert "Digits" in capsys.readouterr().out
    assert main(["ls"]) == 0
    assert "kdkit ls layers model=" in capsys.readouterr().out


def test_ls_models_looks_into_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "models", "resnet1?"]) == 0
    text = capsys.readouterr().out
    assert "student=timm student.model.name=NAME" in text and "resnet18" in text.split()


def test_ls_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "layers", "model=small_cnn", "model.model.width=4"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "1×4×8×8" in lines["block1"] and "penultimate" in lines
    assert main(["ls", "layers", "teacher=mlp"]) == 0
    assert capsys.readouterr().out.startswith("teacher: ")
    assert "student is a network for text and the data is of images" in mistake(
        capsys, "ls", "layers", "model=llama_tiny"
    )
