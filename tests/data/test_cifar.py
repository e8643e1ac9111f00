"""CIFAR through torchvision, from small files in its layout."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from kdkit.data import CIFAR10, CIFAR100
from kdkit.errors import DataError


def write(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """Fake files of 200 training and 100 test images, with torchvision expecting their checksums."""
    fine = request.param == "CIFAR100"
    classes, key = (100, "fine_labels") if fine else (10, "labels")
    cls = getattr(torchvision.datasets, request.param)
    folder = tmp_path / cls.base_folder
    random = np.random.default_rng(0)

    def part(count: int) -> dict[str, Any]:
        pixels = random.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, key: [i % classes for i in range(count)]}

    monkeypatch.setattr(cls, "train_list", [["one", write(folder / "one", part(200))]])
    monkeypatch.setattr(cls, "test_list", [["two", write(folder / "two", part(100))]])
    names = {cls.meta["key"]: [f"class {i}" for i in range(classes)]}
    monkeypatch.setattr(cls, "meta", {"filename": "m", "key": cls.meta["key"], "md5": write(folder / "m", names)})
    return {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[request.param]


def test_reads_what_torchvision_reads(files: Any, tmp_path: Path) -> None:
    data = files(str(tmp_path), download=False, val_size=100)
    assert [data.size(split) for split in ("train", "val", "test")] == [100, 100, 100]
    assert (data.spec.image_size, data.spec.in_chans) == (32, 3)
    assert data.spec.num_classes == len(data.spec.class_names) in (10, 100)
    raw = getattr(torchvision.datasets, files.__name__)(str(tmp_path), train=False)
    test = next(iter(data.batches("test", 100, train=False)))
    assert torch.equal(test["image"], torch.from_numpy(raw.data).permute(0, 3, 1, 2).float() / 255)
    assert test["label"].tolist() == raw.targets
    assert data.name == files.__name__.lower()


def test_spec_has_the_literature_constants(files: Any, tmp_path: Path) -> None:
    spec = files(str(tmp_path), download=False, val_size=0).spec
    if files is CIFAR100:
        assert (spec.mean, spec.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    else:
        assert spec.mean == (0.4914, 0.4822, 0.4465)


def test_papers_protocol_has_no_validation_split(files: Any, tmp_path: Path) -> None:
    data = files(str(tmp_path), download=False, val_size=0, augment=False)
    assert data.size("train") == 200
    assert data.size("val") == 0


def test_missing_and_damaged(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = getattr(torchvision.datasets, files.__name__)
    inner = source.base_folder
    way_out = (
        rf"get {source.filename} from https://www\.cs\.toronto\.edu/~kriz/cifar\.html, unpack it, and give the folder "
        rf"that holds {inner} as data\.root=… \(data_dir=… for a benchmark table\)$"
    )
    message = rf"^{files.__name__}: .*empty holds no {inner} with the files one, two, m \(download=false\); {way_out}"
    with pytest.raises(DataError, match=message):
        files(str(tmp_path / "empty"), download=False)
    (tmp_path / inner / "one").write_bytes(b"cut")
    with pytest.raises(DataError, match=rf"{inner} is not complete: one damaged \(download=false\); {way_out}"):
        files(str(tmp_path), download=False)
    (tmp_path / inner / "two").unlink()
    with pytest.raises(DataError, match=rf"{inner} is not complete: two missing and one damaged"):
        files(str(tmp_path), download=False)

    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(source, "download", offline)
    with pytest.raises(DataError, match=rf"two missing and one damaged \(the download failed: no network\); {way_out}"):
        files(str(tmp_path))
