"""The standard library's source."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from kdkit.data import StdlibText
from kdkit.data._base import Split
from kdkit.errors import DataError, InputError

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library: 40 modules, and what must not be read."""
    root = tmp_path / "python"
    for i in range(40):
        path = root / ("email" if i % 2 else ".") / f"module_{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 5), encoding="utf-8")
    for name in ("site-packages/a.py", "test/b.py", "email/tests/c.py", "idlelib/d.py", "_sysconfigdata_x.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("forbidden = 1\n")
    (root / "copy.py").write_text((root / "module_0.py").read_text())
    (root / "latin.py").write_bytes(b"x = '\xe4'\n")
    (root / "empty.py").write_text("\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return root


def make(**options: Any) -> StdlibText:
    return StdlibText(**{"vocab_size": 300, "context": 32, "val_share": 0.1, "test_share": 0.1} | options)


def test_files_by_split(library: Path) -> None:
    data = make()
    names = [name for split in SPLITS for name in data.files[split]]
    assert len(names) == len(set(names)) == 40
    contents = [(library / name).read_bytes() for name in names]
    assert len(set(contents)) == 40, "equal content in two places"
    assert all(data.files[split] for split in SPLITS)
    assert not {"empty.py", "latin.py", "site-packages/a.py", "test/b.py", "email/tests/c.py"} & set(names)


def test_bytes(library: Path) -> None:
    data = make()
    for split in SPLITS:
        batch = next(iter(data.batches(split, 10_000, train=False)))
        want = sum((library / name).stat().st_size for name in data.files[split])
        assert int(batch["num_bytes"][batch["labels"] != -100].sum()) == want


def test_max_bytes_takes_the_same_files_every_time(library: Path) -> None:
    few, more = make(max_bytes=600), make(max_bytes=1200)
    sizes = [
        sum((library / name).stat().st_size for split in SPLITS for name in data.files[split]) for data in (few, more)
    ]
    assert 400 < sizes[0] <= 600 < sizes[1] <= 1200
    assert make(max_bytes=600).files == few.files


def test_exclude(library: Path) -> None:
    names = [name for found in make(exclude=["email"]).files.values() for name in found]
    assert not any(name.startswith("email") for name in names)
    assert "test/b.py" in names or "idlelib/d.py" in names


def test_fingerprint_covers_contents(library: Path) -> None:
    plain = make().fingerprint
    assert make().fingerprint == plain
    (library / "module_4.py").write_text("changed = 1\n")
    assert make().fingerprint != plain


def test_the_real_library_can_be_read() -> None:
    data = StdlibText(max_bytes=100_000, vocab_size=300)
    assert all(data.size(split) > 0 for split in SPLITS)
    assert data.name == "stdlib"


def test_bad_input(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="StdlibText: max_bytes must be at least 1, got 0; null takes all files"):
        make(max_bytes=0)
    with pytest.raises(DataError, match=r"StdlibText: \d different document\(s\) cannot be divided"):
        make(max_bytes=60)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "nothing")})
    with pytest.raises(DataError, match=r"nothing holds no \*.py files; install Python's standard library as source"):
        make()
