"""What is shipped: wheel and source archive are complete, work away from the checkout, and declare what they import."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import kdkit

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def recipes() -> set[str]:
    return {file.relative_to(ROOT / "recipes").as_posix() for file in (ROOT / "recipes").rglob("*.yaml")}


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that has to succeed."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built with what is installed: no network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder by pip, without its dependencies."""
    target = tmp_path_factory.mktemp("installed")
    (wheel,) = archives.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target")
    run(*pip, target, wheel, cwd=target)
    return target


# ---- archives ------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_package_recipes_and_nothing_else(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    assert wheel.name == f"kdkit-{kdkit.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    files = {name.removeprefix("kdkit/") for name in names if name.startswith("kdkit/")}
    assert {name.split("/")[0] for name in names} == {"kdkit", f"kdkit-{kdkit.__version__}.dist-info"}
    assert {name.removeprefix("_recipes/") for name in files if name.startswith("_recipes/")} == recipes()
    sources = {file.relative_to(ROOT / "kdkit").as_posix() for file in (ROOT / "kdkit").rglob("*") if file.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    assert {name for name in files if not name.startswith("_recipes/")} == sources
    assert {"py.typed", "report/templates/base.html"} <= files


def test_the_wheel_describes_itself(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = f"kdkit-{kdkit.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "kdkit = kdkit.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Requires-Python: {PROJECT['requires-python']}" in metadata
    assert "# kdkit" in metadata


def test_the_source_archive_is_the_project(archives: Path) -> None:
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"recipes/{name}" for name in recipes()} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "mkdocs.yml", "pyproject.toml"} <= names
    assert {"kdkit/cli.py", "tests/test_package.py", "docs/index.md", "docs/assets/flow.svg"} <= names
    unwanted = {".venv", ".git", "runs", "site", "dist"}
    assert not {name.split("/")[0] for name in names} & unwanted


# ---- away from the checkout ----------------------------------------------------------------------------------------


def test_the_installed_wheel_answers_from_any_folder(unpacked: Path, tmp_path: Path) -> None:
    where = {"PYTHONPATH": str(unpacked)}
    place = run(sys.executable, "-c", "import kdkit; print(kdkit.__file__)", cwd=tmp_path, **where)
    assert Path(place.strip()) == unpacked / "kdkit" / "__init__.py"
    script = run(sys.executable, unpacked / "bin" / "kdkit", "--help", cwd=tmp_path, **where)
    assert script.startswith("kdkit: ") and "kdkit distill" in script
    listed = run(sys.executable, "-m", "kdkit.cli", "ls", "recipes", cwd=tmp_path, **where)
    assert {"nkd", "digits", "stdlib_lm", "small_cnn"} <= set(listed.split())
    shown = run(sys.executable, "-m", "kdkit.cli", "distill", "--info", "searchpath", cwd=tmp_path, **where)
    assert str(unpacked / "kdkit" / "_recipes") in shown and str(ROOT) not in shown


@pytest.mark.slow
def test_the_installed_wheel_distils(unpacked: Path, tmp_path: Path) -> None:
    where = {"PYTHONPATH": str(unpacked), "KDKIT_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    words = ["distill", "debug=one_batch", "run_dir=run", "loss=[ce,nkd,nd]"]
    said = run(sys.executable, "-m", "kdkit.cli", *words, cwd=tmp_path, **where)
    assert "student" in said and "report: run/report.html" in said
    assert {file.name for file in (tmp_path / "run").iterdir()} >= {"results.json", "report.html", "student"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "store"]


# ---- declarations --------------------------------------------------------------------------------------------------


def imported() -> dict[str, set[str]]:
    """Third-party module -> files of kdkit that import it, wherever in the file."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "kdkit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - {"kdkit", "__future__"} - sys.stdlib_module_names:
                found.setdefault(name, set()).add(file.relative_to(ROOT).as_posix())
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\s\[<>=!~;]", requirement)[0]) for requirement in requirements}


def test_every_import_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    required, optional = declared(PROJECT["dependencies"]), declared(extras["llm"])
    distributions = {**packages_distributions(), "peft": ["peft"], "triton": ["torch"]}  # torch requires it on Linux
    found = imported()
    assert {"torch", "timm", "transformers", "hydra", "ot", "PIL", "yaml"} <= set(found)
    for module, files in found.items():
        names = {normal(name) for name in distributions[module]}
        allowed = required | optional if files == {"kdkit/models/text.py"} else required
        assert names & allowed, f"{module}, imported by {sorted(files)}, comes from {names}, which is not declared"


def test_requirements_are_ranges_of_plain_packages() -> None:
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *(name for names in extras.values() for name in names)]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+(\[\w+(,\w+)*\])?((>=|<|,)[0-9.,<>=]*)?", requirement), requirement
    unpinned = [name for name in PROJECT["dependencies"] if ">=" not in name]
    assert not unpinned


def test_nothing_shipped_names_a_machine() -> None:
    """No private addresses, no package index besides the public ones, no absolute path of somebody's home."""
    private = re.compile(
        r"\b(?:10|127|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b"
        r"|(?:index[-_]url|trusted[-_]host|find[-_]links)\b"
        r"|(?<![\w.])/(?:home|root|Users|work|mnt)/\w+"
    )
    for folder in ("kdkit", "recipes", "docs", "benchmarks", ".ci"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in (".py", ".yaml", ".md", ".html", ".css", ".js", ".svg", ""):
                hit = private.search(file.read_text(encoding="utf-8"))
                assert not hit, f"{file.relative_to(ROOT)}: {hit[0]}"
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "mkdocs.yml"):
        hit = private.search((ROOT / name).read_text(encoding="utf-8"))
        assert not hit, f"{name}: {hit[0]}"
