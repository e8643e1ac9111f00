"""The folder that kdkit keeps things in."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdkit.data._store import keep, store


def test_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "here"))
    assert store("a", "b") == tmp_path / "here" / "a" / "b"
    assert not (tmp_path / "here").exists()
    for value in (None, ""):
        monkeypatch.delenv("KDKIT_STORE") if value is None else monkeypatch.setenv("KDKIT_STORE", value)
        assert store("a") == Path.home() / ".cache" / "kdkit" / "a"


def test_keep_replaces_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    for text in ("one", "two"):
        assert keep(folder, lambda place, text=text: (place / "x").write_text(text))
        assert (folder / "x").read_text() == text

    def fail(place: Path) -> None:
        (place / "x").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.warns(
        UserWarning, match=r"kept is not kept \(.*No space left on device\); set KDKIT_STORE to a folder"
    ):
        assert not keep(folder, fail)
    assert (folder / "x").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
