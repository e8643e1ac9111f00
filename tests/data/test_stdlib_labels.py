"""Pieces of the standard library, labelled with their package."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from kdkit.data import StdlibLabels
from kdkit.errors import DataError, InputError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three packages of six modules each, with pieces of four lines."""
    root = tmp_path / "python"
    for package in ("email", "http", "xml"):
        for i in range(6):
            lines = [f"{package}_{i}_{line} = {line}" for line in range(16 + 4 * i)]
            (root / package / "sub").mkdir(parents=True, exist_ok=True)
            (root / package / "sub" / f"module_{i}.py").write_text("\n\n".join(lines) + "\n")
        (root / package / "__init__.py").write_text("x = 1\n")
        (root / package / "test").mkdir()
        (root / package / "test" / "forbidden.py").write_text("forbidden = 1\n" * 8)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return root


def make(**options: Any) -> StdlibLabels:
    options = {"packages": ["email", "http", "xml"], "lines": 4, "vocab_size": 300, "context": 128} | options
    return StdlibLabels(**options)


def decoded(data: StdlibLabels, split: Any) -> list[str]:
    batch = next(iter(data.batches(split, 1000, train=False)))
    return [data.spec.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]


def test_no_file_is_in_two_splits_and_every_label_is_right(library: Path) -> None:
    data = make()
    assert data.spec.class_names == ("email", "http", "xml")
    names = [name for split in ("train", "val", "test") for name in data.files[split]]
    assert len(names) == len(set(names)) == 18
    for split in ("train", "val", "test"):
        for text, label in zip(decoded(data, split), data.labels(split).tolist()):
            assert len(text.split("\n")) == 4 and "forbidden" not in text
            modules = {line.rsplit("_", 1)[0] for line in text.split("\n")}
            assert len(modules) == 1
            package, number = modules.pop().split("_")
            assert package == data.spec.class_names[label]
            assert f"{package}/sub/module_{number}.py" in data.files[split]
    shares = [data.size(split) / sum(data.size(each) for each in ("train", "val", "test")) for split in ("val", "test")]
    assert 0.1 < shares[0] < 0.35 and 0.2 < shares[1] < 0.45


def test_pieces_that_were_there_before_are_left_out(library: Path) -> None:
    (library / "xml" / "copy.py").write_text((library / "email" / "sub" / "module_0.py").read_text())
    every = [text for split in ("train", "val", "test") for text in decoded(make(), split)]
    assert len(every) == len(set(every))


def test_options(library: Path) -> None:
    assert make(pieces=10).size("train") == 3 * 6
    assert make().fingerprint == make().fingerprint != make(lines=3).fingerprint
    assert make(val_share=0.0).size("val") == 0
    for options, message in (
        ({"packages": ["email"]}, "packages must be two or more different ones"),
        ({"lines": 0}, "lines must be at least 1, got 0"),
        ({"pieces": 3}, "pieces must be at least 10, got 3"),
    ):
        with pytest.raises(InputError, match=message):
            make(**options)
    with pytest.raises(DataError, match=r"has no package 'tkinter'; name others with data.packages=\[…\]"):
        make(packages=["email", "tkinter"])
    with pytest.raises(DataError, match=r"package 'email' has 0 file\(s\) long enough for a piece and 3 splits"):
        make(lines=100)


def test_the_real_library_can_be_read() -> None:
    data = StdlibLabels(pieces=20, vocab_size=300)
    assert data.spec.num_classes == 10
    assert all(data.labels(split).unique().numel() == 10 for split in ("train", "val", "test"))
