"""Fashion-MNIST from idx files, or a sentence that says where to get them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from kdkit.data import FashionMNIST, fashion_mnist
from kdkit.errors import DataError, InputError


def write_idx(path: Path, values: torch.Tensor, *, packed: bool = True) -> None:
    head = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = head + values.to(torch.uint8).numpy().tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_all(folder: Path, *, packed: bool = True) -> torch.Tensor:
    images = torch.randint(0, 256, (100, 28, 28), generator=torch.Generator().manual_seed(0))
    write_idx(folder / "train-images-idx3-ubyte", images, packed=packed)
    write_idx(folder / "train-labels-idx1-ubyte", torch.arange(100) % 10, packed=packed)
    write_idx(folder / "t10k-images-idx3-ubyte", images[:20], packed=packed)
    write_idx(folder / "t10k-labels-idx1-ubyte", torch.arange(20) % 10, packed=packed)
    return images


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_reads_idx_files(tmp_path: Path, place: str, packed: bool) -> None:
    images = write_all(tmp_path / place, packed=packed)
    data = FashionMNIST(str(tmp_path), val_size=20)
    assert [data.size(split) for split in ("train", "val", "test")] == [80, 20, 20]
    assert (data.spec.image_size, data.spec.in_chans, data.spec.class_names[8]) == (28, 1, "bag")
    test = next(iter(data.batches("test", 20, train=False)))
    assert torch.equal(test["image"][:, 0], images[:20].float() / 255)
    assert torch.equal(test["label"], torch.arange(20) % 10)


def test_debian_folder_comes_before_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    write_all(tmp_path / "debian")
    assert FashionMNIST(val_size=10, download=False).size("train") == 90


def test_subsets_are_stratified(tmp_path: Path) -> None:
    write_all(tmp_path)
    data = FashionMNIST(str(tmp_path), val_size=20, train_size=40, labels=10, image_size=14)
    train = next(iter(data.batches("train", 99, train=False)))
    assert train["image"].shape == (40, 1, 14, 14)
    assert torch.bincount(train["label"][train["label"] >= 0]).tolist() == [1] * 10
    with pytest.raises(InputError, match="train_size must be between 1 and 80, got 81; null takes all"):
        FashionMNIST(str(tmp_path), val_size=20, train_size=81)
    assert FashionMNIST(str(tmp_path), val_size=0).size("val") == 0


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        r"FashionMNIST: {} missing in .* and {}; run `apt install dataset-fashion-mnist`, or get the four files from "
        r"https://github\.com/zalandoresearch/fashion-mnist and give their folder as data\.root=… \(data_dir=…"
    )
    images, labels = (r"train-images-idx3-ubyte\.gz", r"train-labels-idx1-ubyte\.gz")
    test = r"t10k-images-idx3-ubyte\.gz, t10k-labels-idx1-ubyte\.gz"
    with pytest.raises(DataError, match=message.format(f"{images}, {labels}, {test}", "download=false")):
        FashionMNIST(str(tmp_path), download=False)
    write_all(tmp_path / "FashionMNIST" / "raw")
    (tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=message.format(labels, "download=false").replace("in .*", "in .*raw")):
        FashionMNIST(str(tmp_path), download=False)

    def offline(*args: Any, **options: Any) -> None:
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    reason = r"the download failed \(Error downloading train-images\)"
    with pytest.raises(DataError, match=message.format(labels, reason)):
        FashionMNIST(str(tmp_path))


def test_downloads_into_the_store(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(
        torchvision.datasets, "FashionMNIST", lambda root, download: write_all(Path(root) / "FashionMNIST" / "raw")
    )
    assert FashionMNIST(val_size=10).size("train") == 90
    assert (store / "datasets" / "FashionMNIST" / "raw").is_dir()


@pytest.mark.parametrize("damage", ["cut", "not gzip", "short", "magic"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    write_all(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(
        {
            "cut": path.read_bytes()[:1000],
            "not gzip": b"hello",
            "short": gzip.compress(content[:-1]),
            "magic": gzip.compress(b"\x00\x00\x08\x01" + content[4:]),
        }[damage]
    )
    with pytest.raises(
        DataError, match=r"train-images-idx3-ubyte.gz (cannot be read|is not a whole idx file).*remove it"
    ):
        FashionMNIST(str(tmp_path), val_size=10)
