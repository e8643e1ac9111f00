"""Small data made on the spot, and a store of its own for every test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "größe",
    "and",
    "漢字",
    "ride",
    "in",
    "tow",
]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of this test."""
    folder = tmp_path / "store"
    monkeypatch.setenv("KDKIT_STORE", str(folder))
    return folder


@pytest.fixture
def make_text() -> Callable[[int], str]:
    """Document number ``i``: some words, no two alike."""

    def make(i: int) -> str:
        count = 3 + 7 * i % 40
        return f"{i}: " + " ".join(WORDS[(i * 5 + k * k) % len(WORDS)] for k in range(count)) + "\n"

    return make


@pytest.fixture
def jsonl(tmp_path: Path, make_text: Callable[[int], str]) -> Path:
    """60 documents."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": make_text(i)}) + "\n" for i in range(60)), encoding="utf-8")
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """``train`` with 10 pictures of each of 3 classes, ``val`` with 3 of each; sizes vary."""
    root = tmp_path / "pictures"
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (20 + 2 * i, 24 + label, 3), generator=random, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i:02}.png")
    return root
