"""The content-addressed store."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdkit.errors import InputError
from kdkit.teachers.store import Store

DEFINITION = {"model": {"_target_": "kdkit.models.resnet20", "num_classes": 10}, "seed": 0, "data": "3fa9"}


def test_root_from_argument_environment_or_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "env"))
    assert Store(tmp_path / "given").root == tmp_path / "given"
    assert Store().root == tmp_path / "env"
    monkeypatch.setenv("KDKIT_STORE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().root == tmp_path / ".cache" / "kdkit"


def test_key_depends_on_every_value_and_not_on_order() -> None:
    assert Store.key(DEFINITION) == Store.key(dict(reversed(DEFINITION.items())))
    assert Store.key(DEFINITION) != Store.key({**DEFINITION, "seed": 1})
    assert len(Store.key({})) == 64


def test_put_then_find(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.find("teacher", DEFINITION) is None
    weights = {"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
    path = store.put("teacher", DEFINITION, {"model.safetensors": weights, "log/x.json": "{}", "raw": b"\x00"})
    assert path == store.find("teacher", DEFINITION) == tmp_path / "store" / "teacher" / Store.key(DEFINITION)
    loaded = load_file(path / "model.safetensors")
    assert torch.equal(loaded["a"], weights["a"]) and loaded["steps"].item() == 7
    assert (path / "log" / "x.json").read_text() == "{}"
    assert json.loads((path / "definition.json").read_text()) == DEFINITION
    assert store.find("class-means", DEFINITION) is None
    assert store.find("teacher", {**DEFINITION, "seed": 1}) is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_tensors_that_share_memory_or_are_views(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"embed": base, "head": base, "row": base[1], "transposed": base.T}
    path = Store(tmp_path).put("teacher", {}, {"x.safetensors": tensors})
    loaded = load_file(path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert (path / "x.safetensors").stat().st_size < 1000


def test_first_entry_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("teacher", DEFINITION, {"x": "first"})
    path = store.put("teacher", DEFINITION, {"x": "second"})
    assert (path / "x").read_text() == "first"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "x").write_text("wrong"), "x does not match its checksum"),
        (lambda path: (path / "x").write_text("flipt"), "x does not match its checksum"),
        (lambda path: (path / "x").unlink(), "x is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"files": {}}'), "does not list definition.json"),
        (lambda path: (path / "definition.json").write_text("{}"), "definition.json does not match"),
    ],
)
def test_a_damaged_entry_is_reported_and_replaced(tmp_path: Path, damage, reason: str) -> None:
    store = Store(tmp_path)
    path = store.put("teacher", DEFINITION, {"x": "right"})
    damage(path)
    with pytest.warns(UserWarning, match=reason):
        assert store.find("teacher", DEFINITION) is None
    store.put("teacher", DEFINITION, {"x": "right"})
    assert store.find("teacher", DEFINITION) == path
    assert (path / "x").read_text() == "right"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_entry_moved_to_another_key_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.put("teacher", DEFINITION, {"x": "right"})
    other = {**DEFINITION, "seed": 1}
    path.rename(store.path("teacher", other))
    with pytest.warns(UserWarning, match="belongs to another entry"):
        assert store.find("teacher", other) is None


def test_remove(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("teacher", DEFINITION, {})
    store.remove("teacher", DEFINITION)
    store.remove("teacher", DEFINITION)
    assert store.find("teacher", DEFINITION) is None


def _put(root: Path, text: str) -> None:
    Store(root).put("teacher", DEFINITION, {f"{i}": text for i in range(10)})


def test_concurrent_writers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_put, args=(tmp_path, f"writer {i}")) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    path = Store(tmp_path).find("teacher", DEFINITION)
    assert path is not None
    assert len({(path / f"{i}").read_text() for i in range(10)}) == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_unwritable_root_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    for attempt in (store.check_writable, lambda: store.put("teacher", DEFINITION, {"x": "y"})):
        with pytest.raises(InputError, match=r"Store: the folder .*file must be writable \(.+\); set KDKIT_STORE"):
            attempt()
    assert store.find("teacher", DEFINITION) is None


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "definition.json", "manifest.json"])
def test_names_stay_inside_the_entry(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="file names must stay inside the entry"):
        Store(tmp_path).put("teacher", {}, {name: "x"})


def test_kind_is_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kind must be lower-case letters.*got '\.\./x'"):
        Store(tmp_path).find("../x", {})
