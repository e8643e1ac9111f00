"""Links lead somewhere, and the site builds from the pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_lead_somewhere(name: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (folder / target).is_file(), f"{name} links to {target}"
            assert not (name.startswith("docs/") and (folder / target).resolve().relative_to(ROOT).parts[0] != "docs")


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        pass

    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed: list[str] = []

    def walk(entry: Any) -> None:
        if isinstance(entry, str):
            listed.append(entry)
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            walk(inner)

    walk(site["nav"])
    assert sorted(listed) == sorted(file.relative_to(ROOT / "docs").as_posix() for file in PAGES[3:])


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "site").rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\s\">]+)", text)
        loaded += re.findall(r"<link(?=[^>]* rel=\"?(?:style|pre))[^>]* href=\"?(https?:[^\s\">]+)", text)
        assert not loaded, f"{file.relative_to(tmp_path)} loads {loaded}"
        left = re.findall(r":(?:math|class|func|meth|mod):`|\.\. math::|\\\(|\\\[", text)
        assert not left or "api" not in file.parts, f"{file.relative_to(tmp_path)} shows {left}"
