"""Files that are whole or absent."""

from __future__ import annotations

import json
import math
import multiprocessing
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from kdkit import _files
from kdkit._files import (
    append_jsonl,
    atomic_dir,
    clean_temporaries,
    jsonable,
    read_jsonl,
    sha256_file,
    sha256_json,
    to_json,
    write_atomic,
    write_json,
)
from kdkit.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    assert write_atomic(path, "größer") == path
    assert path.read_text(encoding="utf-8") == "größer"
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert names(path.parent) == ["b.txt"]


def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "b.txt", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(InputError, match=r"b\.txt cannot be written \(No space left on device\); choose a place"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["b.txt"]


def test_write_atomic_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "x", "")


def test_atomic_dir_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "step-1"
    with atomic_dir(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "x").read_text() == "1"
    assert names(target.parent) == ["step-1"]


def test_atomic_dir_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "step-1") as folder:
        (folder / "x").write_text("1")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_atomic_dir_with_an_existing_folder(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    target.mkdir()
    (target / "x").write_text("first")
    with pytest.raises(InputError, match="step-1 must not exist yet"), atomic_dir(target):
        pass
    for existing, expected in (("keep", "first"), ("replace", "second")):
        with atomic_dir(target, existing=existing) as folder:  # type: ignore[arg-type]
            (folder / "x").write_text("second")
        assert (target / "x").read_text() == expected
    assert names(tmp_path) == ["step-1"]


def test_atomic_dir_refuses_a_folder_that_appeared_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    with pytest.raises(InputError, match="must not exist yet"), atomic_dir(target) as folder:
        (folder / "x").write_text("late")
        target.mkdir()
        (target / "x").write_text("early")
    assert (target / "x").read_text() == "early"
    assert names(tmp_path) == ["step-1"]


def test_atomic_dir_puts_the_old_folder_back_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "step-1"
    target.mkdir()
    (target / "x").write_text("old")
    rename = Path.rename

    def broken(self: Path, other: Path) -> Path:
        if other == target and not (self / "x").exists():
            raise OSError(5, "Input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", broken)
    with (
        pytest.raises(InputError, match=r"cannot be written \(Input/output error\)"),
        atomic_dir(target, existing="replace"),
    ):
        pass
    assert (target / "x").read_text() == "old"
    assert names(tmp_path) == ["step-1"]


def _write_folder(target: Path, text: str) -> None:
    with atomic_dir(target, existing="keep") as folder:
        for number in range(20):
            (folder / str(number)).write_text(text)


def test_atomic_dir_concurrent_writers_never_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_folder, args=(tmp_path / "entry", f"writer {i}")) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len({path.read_text() for path in (tmp_path / "entry").iterdir()}) == 1
    assert names(tmp_path) == ["entry"]


def test_clean_temporaries(tmp_path: Path) -> None:
    (tmp_path / ".step-1.tmp-1-ab").mkdir()
    (tmp_path / ".x.json.tmp-1-cd").write_text("")
    (tmp_path / "kept").write_text("")
    (tmp_path / ".hidden").write_text("")
    clean_temporaries(tmp_path)
    assert names(tmp_path) == [".hidden", "kept"]


def test_hashes(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "x", "abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert sha256_json({"a": (1, 2), "b": {"c": None}}) == sha256_json({"b": {"c": None}, "a": [1, 2]})
    assert sha256_json({"a": 1}) != sha256_json({"a": 1.0}) != sha256_json({"a": "1"})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_hash_refuses_what_json_cannot_tell_apart(value: float) -> None:
    with pytest.raises(InputError, match="numbers must be finite"):
        sha256_json({"a": value})


@dataclass
class Point:
    x: float


def test_jsonable_converts_what_results_hold() -> None:
    record = {
        "nan": math.nan,
        "inf": -math.inf,
        "numpy": np.float32(1.5),
        "array": np.arange(2),
        "flag": np.bool_(True),
        "tensor": torch.tensor([1.0, math.nan]),
        "zero_d": torch.tensor(2),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "path": Path("a/b"),
        "set": {"b", "a"},
        "config": OmegaConf.create({"x": [1, {"y": 2}]}),
        "point": Point(math.nan),
        3: "three",
    }
    assert jsonable(record) == {
        "nan": None,
        "inf": None,
        "numpy": 1.5,
        "array": [0, 1],
        "flag": True,
        "tensor": [1.0, None],
        "zero_d": 2,
        "dtype": "torch.float32",
        "device": "cpu",
        "path": "a/b",
        "set": ["a", "b"],
        "config": {"x": [1, {"y": 2}]},
        "point": {"x": None},
        "3": "three",
    }


def test_jsonable_names_the_place_of_what_it_refuses() -> None:
    with pytest.raises(InputError, match=r"\$\.a\[1\] must be made of numbers.*got object"):
        to_json({"a": [1, object()]})


def test_write_json_is_valid_json(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"loss": math.nan, "name": "ä"})
    assert "NaN" not in path.read_text()
    assert json.loads(path.read_text()) == {"loss": None, "name": "ä"}


def test_jsonl_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"step": 1, "loss": math.inf})
    append_jsonl(path, {"step": 2, "text": "line\nbreak"})
    assert read_jsonl(path) == [{"step": 1, "loss": None}, {"step": 2, "text": "line\nbreak"}]
    assert path.read_bytes().count(b"\n") == 2


def test_jsonl_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, {"step": 2})
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def _append_many(path: Path, writer: int) -> None:
    for number in range(50):
        append_jsonl(path, {"writer": writer, "number": number, "padding": "x" * 200})


def test_jsonl_concurrent_writers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "results.jsonl"
    workers = [context.Process(target=_append_many, args=(path, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    records = read_jsonl(path)
    assert len(records) == 150
    for writer in range(3):
        assert [record["number"] for record in records if record["writer"] == writer] == list(range(50))


def test_jsonl_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        append_jsonl(tmp_path / "file" / "x.jsonl", {})
