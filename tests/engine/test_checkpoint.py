"""Checkpoints are whole or absent, checked, and free of pickles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdkit.engine.checkpoint import Checkpoint, CheckpointStore
from kdkit.engine.rng import capture_rng, restore_rng
from kdkit.errors import CheckpointError


def checkpoint(step: int) -> Checkpoint:
    tensors = {"model/w": torch.full((3, 2), float(step)), "model/n": torch.tensor(step)}
    training = {"optimizers": {"student": {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)}}}}}
    return Checkpoint(step, tensors, training, [capture_rng()], {"identity": "a", "seconds": 1.5})


def test_round_trip_and_keep(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(checkpoint(step))
    assert [path.name for path in store.list()] == ["step-00000002", "step-00000003"]
    latest = store.latest()
    assert latest is not None
    assert latest.step == 3
    assert torch.equal(latest.tensors["model/w"], torch.full((3, 2), 3.0))
    assert latest.meta["seconds"] == 1.5
    assert torch.equal(latest.training["optimizers"]["student"]["state"][0]["exp_avg"], torch.ones(2))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_damaged_checkpoints_of_later_steps_do_not_push_a_new_one_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    (store.save(checkpoint(9)) / "training.pt").write_bytes(b"torn")
    store.save(checkpoint(5))
    assert [path.name for path in store.list()] == ["step-00000005"]
    latest = store.latest()
    assert latest is not None
    assert latest.step == 5


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").latest() is None


@pytest.mark.parametrize("file", ["model.safetensors", "training.pt", "rng.pt", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(checkpoint(1))
    target = store.save(checkpoint(2)) / file
    content = bytearray(target.read_bytes())
    if damage == "remove":
        target.unlink()
    elif damage == "truncate":
        target.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        target.write_bytes(content)
    with pytest.warns(UserWarning, match="trying the one before"):
        found = store.latest()
    assert found is not None
    assert found.step == 1


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(checkpoint(1)) / "training.pt").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the 1 checkpoints is readable"):
        store.latest()


def test_a_pickle_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    store = CheckpointStore(tmp_path / "run")
    path = store.save(checkpoint(1))
    torch.save({"trap": Trap()}, path / "training.pt")
    import json

    from kdkit._files import sha256_file

    manifest = json.loads((path / "manifest.json").read_text())
    manifest["training.pt"] = sha256_file(path / "training.pt")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(UserWarning), pytest.raises(CheckpointError):
        store.latest()
    assert not (tmp_path / "executed").exists()


def test_tied_tensors_survive(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    store = CheckpointStore(tmp_path)
    store.save(Checkpoint(1, {"model/a": shared, "model/b": shared}, {}, [capture_rng()], {}))
    tensors = store.latest().tensors  # type: ignore[union-attr]
    assert torch.equal(tensors["model/a"], shared)
    assert torch.equal(tensors["model/b"], shared)


def test_rng_state_comes_back_exactly() -> None:
    import random

    import numpy as np

    state = capture_rng()
    first = (random.random(), np.random.rand(), torch.rand(2))  # noqa: NPY002
    restore_rng(state)
    second = (random.random(), np.random.rand(), torch.rand(2))  # noqa: NPY002
    assert first[:2] == second[:2]
    assert torch.equal(first[2], second[2])
