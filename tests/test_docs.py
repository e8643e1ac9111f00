"""README and docs do what they say: every Python block and every command of theirs is executed.

Each page is read top to bottom by somebody in an empty folder: files with a title are written, Python blocks share a
namespace, commands are run in this process, cut to two steps. The quick tests run no training: there only the README's
commands are composed and checked. What a block may say in an HTML comment before it:

* ``not run: REASON``: leave it alone;
* ``composed only: REASON``: compose and check its commands, never run them;
* ``exits with 2``: every command is a mistake, answered in one line;
* ``after the commands``: Python that needs what the commands above have left.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdkit.cli import COMMANDS, HYDRA_COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = ROOT / "recipes"


SKIPPED = {
    ("docs/cli.md", "not run"): 2,
    ("docs/configuration.md", "composed only"): 1,
    ("docs/data.md", "composed only"): 2,
    ("docs/find-the-best-loss.md", "composed only"): 1,
    ("docs/losses/cross-tokenizer.md", "composed only"): 1,
    ("docs/losses/fused.md", "not run"): 1,
    ("docs/speed.md", "not run"): 1,
    ("docs/tables.md", "not run"): 2,
    ("docs/teachers.md", "not run"): 2,
    ("docs/text-classification.md", "composed only"): 3,
    ("docs/text-classification.md", "not run"): 1,
    ("docs/text.md", "composed only"): 1,
    ("docs/text.md", "not run"): 1,
}
"""Blocks that are not executed; each says why where it stands."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str
    note: str

    @property
    def kind(self) -> str:
        return self.note.split(":")[0]

    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


FENCE = re.compile(r'^(?P<indent> *)```(?P<language>\S*)(?: title="(?P<title>[^"]+)")?\s*$')
NOTE = re.compile(r"^ *<!-- (?P<note>.+) -->$")


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if start is None and fence:
            start = (number, fence)
        elif start is not None and line.strip() == "```":
            first, opening = start
            cut = len(opening["indent"])
            text = "\n".join(inner[cut:] for inner in lines[first + 1 : number]) + "\n"
            before = NOTE.match(lines[first - 1]) if first else None
            name = page.relative_to(ROOT).as_posix()
            language, title = opening["language"], opening["title"] or ""
            found.append(Block(name, first + 1, language, title, text, before["note"] if before else ""))
            start = None
    assert start is None, f"{page}: a block is never closed"
    return found


BLOCKS = {page.relative_to(ROOT).as_posix(): blocks(page) for page in PAGES}
ALL = [block for found in BLOCKS.values() for block in found]
READABLE = [name for name, found in BLOCKS.items() if any(b.language in ("python", "bash") for b in found)]


class Reader:
    """Does what a page says.

    Args:
        full: whether to run commands, instead of composing and checking them.
        capsys: what commands print.
        monkeypatch: to keep commands from running.
    """

    def __init__(self, full: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.capsys, self.monkeypatch = full, capsys, monkeypatch
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.said = ""

    def read(self, block: Block) -> None:
        if block.kind == "not run":
            return
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self._python(block)
        elif self.full or block.page == "README.md":
            self._shell(block)

    def _shell(self, block: Block) -> None:
        if block.language == "bash":
            for words in block.commands():
                self._command(block, words)
        elif block.language == "text" and block.text.startswith("kdkit: "):
            assert block.text == self.said

    def _python(self, block: Block) -> None:
        if block.kind == "after the commands" and not self.full:
            return
        code = compile("\n" * block.line + block.text, block.page, "exec")
        exec(code, self.namespace)

    def _command(self, block: Block, words: list[str]) -> None:
        where = f"{block.page}, line {block.line}: {shlex.join(words)}"
        if words[0] != "kdkit":
            assert known_elsewhere(words), f"{where} is no command that this test knows how to check"
            return
        if block.kind == "exits with 2":
            self.capsys.readouterr()
            assert main(words[1:]) == 2, where
            self.said = self.capsys.readouterr().err
            assert self.said.startswith("kdkit: ") and self.said.count("\n") == 1, where
        elif self.full and block.kind != "composed only":
            self._run(words[1:], where)
        else:
            self._compose(words[1:], where)

    def _compose(self, words: list[str], where: str) -> None:
        import kdkit.run

        if words[0] in ("report", "ls"):
            return
        with self.monkeypatch.context() as patch:
            for command in HYDRA_COMMANDS:
                patch.setattr(kdkit.run, command, lambda cfg, context: None)
            self.capsys.readouterr()
            assert main(words) == 0, f"{where}\n{self.capsys.readouterr().err}"

    def _run(self, words: list[str], where: str) -> None:
        for run in {place for word in words for place in re.findall(r"\b(?:OTHER_)?RUN\b", word)}:
            if not Path(run).exists():
                assert main(["distill", "debug=one_batch", f"run_dir={run}"]) == 0
        assert main(tiny(words)) == 0, f"{where}\n{self.capsys.readouterr().err}"


def known_elsewhere(words: list[str]) -> bool:
    """Whether a command that is not kdkit's exists in this checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return set(words[1:]) <= set(targets)
    if words[:2] == ["pip", "install"]:
        form = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])
        return form is not None and (form[1] is None or form[1] in project["optional-dependencies"])
    return words in (["source", ".venv/bin/activate"], ["pre-commit", "install"])


def tiny(words: list[str]) -> list[str]:
    """The same command, over in two steps if it trains."""
    command, rest = words[0], words[1:]
    looks = {"--help", "--cfg", "--info"} & set(rest) or any(word.startswith("resume=") for word in rest)
    if command not in ("distill", "train", "compare") or looks:
        return words
    more = ["engine.max_steps=2", "engine.batch_size=8", "engine.eval_batch_size=512", "engine.progress=none"]
    if not {"teacher=none", "teacher=ema"} & set(rest):
        more += ["teacher.train.max_steps=2", "teacher.train.batch_size=8"]
    if not any(word.startswith("run_dir=") for word in rest):
        more += ["engine.report=false", "engine.export=false", "engine.baseline=false"]
    if command == "compare":
        more += ["seeds=2", "workers=1"]
    if any("stdlib_labels" in word for word in rest):
        more += ["data.pieces=40", "data.vocab_size=300", "data.context=32", "engine.eval_batch_size=64"]
    elif any("stdlib" in word for word in rest):
        more += ["data.max_bytes=300000", "data.vocab_size=300", "data.context=32", "engine.eval_batch_size=64"]
    return [command, *rest, *more]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to read a page in; modules that the page wrote and logging are put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers[:], root.level = handlers, level
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


# ---- code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", READABLE)
@pytest.mark.usefixtures("folder")
def test_python_blocks_run(page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(False, capsys, monkeypatch)
    for block in BLOCKS[page]:
        reader.read(block)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [name for name in READABLE if any(b.language == "bash" and "kdkit" in b.text for b in BLOCKS[name])],
)
@pytest.mark.usefixtures("folder")
def test_a_page_works_from_top_to_bottom(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(True, capsys, monkeypatch)
    for block in BLOCKS[page]:
        reader.read(block)


def test_what_is_not_run_says_why() -> None:
    kinds = {"not run", "composed only", "exits with 2", "after the commands"}
    noted = [block for block in ALL if block.note]
    assert {block.kind for block in noted} <= kinds
    skipped = [block for block in noted if block.kind in ("not run", "composed only")]
    assert all(re.fullmatch(r"[a-z ]+: \S.{15,}", block.note) for block in skipped)
    assert Counter((block.page, block.kind) for block in skipped) == SKIPPED


def test_there_is_code_to_run_and_every_block_names_its_language() -> None:
    assert {"README.md", "docs/quickstart.md", "docs/cli.md", "docs/losses/index.md", "docs/add-a-loss.md"} <= set(
        READABLE
    )
    assert {block.language for block in ALL} <= {"python", "bash", "yaml", "text"}
    assert sum(block.language == "python" for block in ALL) >= 10
    assert sum(len(block.commands()) for block in ALL if block.language == "bash") >= 60


@pytest.mark.slow
def test_the_loss_that_a_page_adds_keeps_the_contract(tmp_path: Path) -> None:
    for name in ("kdkit", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "losses", tmp_path / "tests" / "losses")
    files = {block.title: block.text for block in BLOCKS["docs/add-a-loss.md"] if block.title}
    (tmp_path / "kdkit" / "losses" / "bhattacharyya.py").write_text(files["bhattacharyya.py"])
    test = "tests/losses/test_bhattacharyya.py"
    (tmp_path / test).write_text(files[test])
    with (tmp_path / "kdkit" / "losses" / "__init__.py").open("a") as file:
        names = "BhattacharyyaLoss", "bhattacharyya_loss"
        file.write(f"\nfrom kdkit.losses.bhattacharyya import {', '.join(names)}\n\n__all__ += {list(names)}\n")
    recipe = files["mine/loss/bhattacharyya.yaml"].replace("bhattacharyya.Bh", "kdkit.losses.Bh")
    (tmp_path / "recipes" / "loss" / "bhattacharyya.yaml").write_text(recipe)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    chosen = "BhattacharyyaLoss or every_loss or test_bhattacharyya"
    tests = ["tests/losses/test_contract.py", test, "-k", chosen]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""}
    done = subprocess.run([*command, *tests], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    listed = subprocess.run(
        [sys.executable, "-m", "kdkit.cli", "ls", "losses", "bhattacharyya"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "BhattacharyyaLoss" in listed.stdout and "Bhattacharyya 1943" in listed.stdout


# ---- completeness --------------------------------------------------------------------------------------------------


def page(name: str) -> str:
    path = ROOT / name
    files = sorted(path.glob("*.md")) if path.is_dir() else [path]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (RECIPES / group).glob("*.yaml") if not file.stem.startswith("_"))


def settings(name: str) -> dict[str, Any]:
    found = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("defaults", "hydra")}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("docs/losses", "loss"),
        ("docs/data.md", "data"),
        *[
            ("docs/configuration.md", group)
            for group in ("optim", "scheduler", "logger", "task", "experiment", "debug")
        ],
    ],
)
def test_every_recipe_is_described(name: str, group: str) -> None:
    assert options(group)
    missing = [option for option in options(group) if f"`{option}`" not in page(name)]
    assert not missing


def test_every_setting_is_described() -> None:
    text = page("docs/configuration.md")
    top = {key for file in ("config", "train", "cache", "compare", "evaluate") for key in settings(f"{file}.yaml")}
    missing = [key for key in top if f"`{key}`" not in text]
    assert not missing


def test_the_engine_is_described_with_its_defaults() -> None:
    rows = re.findall(r"^\| `engine\.(\w+)` \| ([^|]+) \|", page("docs/configuration.md"), re.MULTILINE)
    assert {key: yaml.safe_load(default) for key, default in rows} == settings("engine/default.yaml")


def test_the_readme_names_the_demo() -> None:
    (line,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/(kdkit .+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line in page("README.md")


def test_every_command_has_a_section() -> None:
    text = page("docs/cli.md")
    assert [command for command in COMMANDS if f"\n## {command}\n" not in text] == []


def test_every_public_loss_is_described() -> None:
    import kdkit.losses

    bases = {"DistillationLoss", "FeatureLoss", "FeaturesLoss", "LabelledLogitLoss", "LogitLoss", "Probe"}
    text = page("docs/losses")
    assert [name for name in kdkit.losses.__all__ if name not in bases and f"`{name}`" not in text] == []


def test_pictures_of_losses_are_light_and_shown() -> None:
    drawn = re.findall(r"^@picture\ndef (\w+)", page("docs/_build/pictures.py"), re.MULTILINE)
    files = sorted((ROOT / "docs" / "assets" / "losses").iterdir())
    assert [file.name for file in files] == sorted(f"{name}.svg" for name in drawn), "run make pictures"
    for file in files:
        assert file.stat().st_size < 150_000, file
        assert f"](../assets/losses/{file.name})" in page("docs/losses"), f"no page of losses shows {file.name}"
