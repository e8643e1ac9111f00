"""Images in folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kdkit.data import ImageFolder, ImageNet
from kdkit.data.folder import _Transform
from kdkit.errors import DataError, InputError


def make(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(str(root), **{"image_size": 16, "num_workers": 0} | options)


def test_spec_and_sizes(image_folder: Path) -> None:
    data = make(image_folder)
    assert [data.size(split) for split in ("train", "val", "test")] == [30, 9, 0]
    assert data.spec.class_names == ("ant", "bee", "cat")
    assert (data.spec.in_chans, data.spec.image_size, data.name) == (3, 16, "pictures")
    labels = next(iter(data.batches("val", 9, train=False)))["label"]
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("train", [True, False])
def test_number_of_workers_does_not_matter(image_folder: Path, train: bool) -> None:
    alone, helped = make(image_folder), make(image_folder, num_workers=2)
    for one, two in zip(alone.batches("train", 6, train=train), helped.batches("train", 6, train=train), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_sample_depends_on_seed_epoch_and_index_alone(image_folder: Path) -> None:
    data = make(image_folder)

    def by_index(batch_size: int, epoch: int) -> dict[int, torch.Tensor]:
        return {
            int(index): image
            for batch in data.batches("train", batch_size, train=True, epoch=epoch)
            for index, image in zip(batch["index"], batch["image"])
        }

    small, big, later = by_index(5, 0), by_index(10, 0), by_index(5, 1)
    assert all(torch.equal(small[index], big[index]) for index in range(30))
    assert not all(torch.equal(small[index], later[index]) for index in range(30))


def test_start_skips_without_decoding(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    plain = _Transform.__call__
    monkeypatch.setattr(_Transform, "__call__", lambda *args: decoded.append(1) or plain(*args))
    list(make(image_folder).batches("train", 10, train=True, start=2))
    assert len(decoded) == 10


def test_evaluation_is_resize_and_centre_crop(image_folder: Path) -> None:
    from torchvision.transforms import functional as TF

    got = next(iter(make(image_folder).batches("val", 1, train=False)))["image"][0]
    image = Image.open(image_folder / "val" / "ant" / "00.png")
    want = TF.to_tensor(TF.center_crop(TF.resize(image, 18), 16))
    assert torch.equal(got, want)
    whole = next(iter(make(image_folder, augment=False).batches("train", 30, train=True)))
    fixed = next(iter(make(image_folder).batches("train", 30, train=False)))
    assert torch.equal(whole["image"], fixed["image"][whole["index"]])


def test_training_crops_cover_the_asked_share() -> None:
    transform = _Transform(16, 0.875, (0.25, 0.5), (0.75, 4 / 3))
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        top, left, height, width = transform._window(60, 80, random)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert 0.23 < height * width / 4800 < 0.53
        assert 0.7 < width / height < 1.4
    assert transform._window(1000, 10, random)[2:] == (13, 10)  # no crop fits: the central one


def test_grey_pictures_become_rgb(image_folder: Path) -> None:
    Image.new("L", (30, 30), 51).save(image_folder / "val" / "ant" / "00.png")
    got = next(iter(make(image_folder).batches("val", 1, train=False)))["image"]
    assert torch.allclose(got, torch.full((1, 3, 16, 16), 0.2))


def test_val_size_holds_out_of_train(image_folder: Path) -> None:
    data = make(image_folder, val_size=6)
    assert [data.size(split) for split in ("train", "val", "test")] == [24, 6, 9]
    held = next(iter(data.batches("val", 6, train=False)))
    assert torch.bincount(held["label"]).tolist() == [2, 2, 2]
    shutil.copytree(image_folder / "train", image_folder / "test")
    assert make(image_folder, val_size=6).size("test") == 30


def test_few_labels(image_folder: Path) -> None:
    labels = next(iter(make(image_folder, labels=6).batches("train", 30, train=False)))["label"]
    assert torch.bincount(labels[labels >= 0]).tolist() == [2, 2, 2]


def test_fingerprint(image_folder: Path, tmp_path: Path) -> None:
    plain = make(image_folder).fingerprint
    moved = shutil.copytree(image_folder, tmp_path / "elsewhere")
    assert make(moved, num_workers=2).fingerprint == plain
    changes: list[dict[str, Any]] = [
        {"image_size": 17},
        {"crop_share": 1.0},
        {"val_size": 6},
        {"labels": 6},
        {"augment": False},
        {"scale": (0.5, 1.0)},
        {"mean": (0.5, 0.5, 0.5)},
    ]
    seen = {make(image_folder, **change).fingerprint for change in changes} | {plain}
    (moved / "val" / "ant" / "00.png").rename(moved / "val" / "ant" / "000.png")
    seen.add(make(moved).fingerprint)
    Image.new("RGB", (90, 90)).save(moved / "val" / "ant" / "000.png")
    seen.add(make(moved).fingerprint)
    assert len(seen) == len(changes) + 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_picture_is_named(image_folder: Path, num_workers: int) -> None:
    (image_folder / "val" / "bee" / "01.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=r"^\S*val/bee/01.png cannot be read as an image \([^\n]*\); repair or remove it$"
    ):
        list(make(image_folder, num_workers=num_workers).batches("val", 2, train=False))


def test_missing_folders(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere does not exist; data\.root must be a folder of images, train/<class>/"
    ):
        make(tmp_path / "nowhere")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"flat/train holds no class folders"):
        make(tmp_path / "flat")
    (image_folder / "val" / "dog").mkdir()
    with pytest.raises(DataError, match=r"val: class 'dog' is not among the 3 classes of train; remove it"):
        make(image_folder)
    shutil.rmtree(image_folder / "val")
    with pytest.raises(DataError, match=r"pictures has neither val/ nor test/ beside train/"):
        make(image_folder)
    (image_folder / "val").mkdir()
    with pytest.raises(DataError, match=r"val holds no images \(.*\); copy them there"):
        make(image_folder)
    shutil.copy(image_folder / "train" / "ant" / "00.png", image_folder / "val")
    with pytest.raises(DataError, match=r"val holds 1 images beside each other; move each into .*val/ant and so on"):
        make(image_folder)
    (image_folder / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"train: Found no valid file for the classes dog.*remove the empty folders"):
        make(image_folder)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"image_size": 0}, "ImageFolder: image_size must be at least 1 pixel, got 0"),
        ({"crop_share": 1.5}, r"ImageFolder: crop_share must lie in \(0, 1\], got 1.5"),
        ({"scale": (0.5, 0.1)}, r"ImageFolder: scale must be \(low, high\) above 0, got \(0.5, 0.1\)"),
        ({"num_workers": -1}, "ImageFolder: num_workers must not be negative, got -1"),
        ({"val_size": 30}, "val_size must be between 0 and 29, got 30"),
        ({"mean": (0.5,)}, r"ImageFolder: mean must have 3 entries, one per channel, got \(0.5,\)"),
    ],
)
def test_bad_options(image_folder: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(image_folder, **option)


def test_imagenet_wants_its_thousand_classes(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must hold 1,000 folders named by WordNet ids .* got 3, among them 'ant'; data\.root must be"
    ):
        ImageNet(str(image_folder))
    where = r"data\.root must be the folder with the ILSVRC2012 images of https://image-net\.org/download-images\.php"
    (tmp_path / "tars").mkdir()
    with pytest.raises(DataError, match=rf"tars/train does not exist; {where} .*; data_dir=… of a benchmark table\)$"):
        ImageNet(str(tmp_path / "tars"))
    (tmp_path / "tars" / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(DataError, match=rf"tars/ILSVRC2012_img_train\.tar is not unpacked; {where}"):
        ImageNet(str(tmp_path / "tars"))
    picture = image_folder / "val" / "ant" / "00.png"
    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / "imagenet" / split / f"n{number:08}"
            folder.mkdir(parents=True)
            shutil.copy(picture, folder)
    data = ImageNet(str(tmp_path / "imagenet"), image_size=8, num_workers=0)
    assert (data.spec.num_classes, data.size("train"), data.spec.class_names[7]) == (1000, 1000, "n00000007")
    (tmp_path / "imagenet" / "train" / "n00000007" / "00.png").unlink()
    (tmp_path / "imagenet" / "train" / "n00000007").rmdir()
    with pytest.raises(DataError, match=r"got 999, without n01440764, n01443537, n01484850, …; data\.root must be"):
        ImageNet(str(tmp_path / "imagenet"))
