"""Text through the ``datasets`` library, from local files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdkit.data import HubText
from kdkit.errors import DataError, InputError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path, make_text: Callable[[int], str]) -> Path:
    """A data set folder with train and validation."""
    root = tmp_path / "my_texts"
    root.mkdir()
    for split, numbers in (("train", range(40)), ("validation", range(40, 50))):
        lines = [json.dumps({"text": make_text(i), "q": f"{i}? ", "a": str(i)}) for i in numbers]
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def make(dataset: Any, **options: Any) -> HubText:
    return HubText(str(dataset), **{"vocab_size": 300, "context": 16, "test_share": 0.1} | options)


def num_bytes(data: HubText, split: Any) -> int:
    return int(next(iter(data.batches(split, 10_000, train=False)))["num_bytes"].sum())


def test_usual_split_names_and_a_drawn_test(folder: Path, make_text: Callable[[int], str]) -> None:
    data = make(folder)
    assert data.name == "my_texts"
    assert num_bytes(data, "val") == sum(len(make_text(i).encode()) for i in range(40, 50))
    assert num_bytes(data, "train") + num_bytes(data, "test") == sum(len(make_text(i).encode()) for i in range(40))
    assert data.size("test") > 0
    assert make(folder).fingerprint == data.fingerprint
    assert make(folder, context=17).fingerprint != data.fingerprint


def test_named_splits_and_slices(folder: Path, make_text: Callable[[int], str]) -> None:
    data = make(folder, splits={"train": "train[:50%]", "test": "validation"}, val_share=0)
    assert num_bytes(data, "train") == sum(len(make_text(i).encode()) for i in range(20))
    assert num_bytes(data, "test") == sum(len(make_text(i).encode()) for i in range(40, 50))
    assert data.size("val") == 0


def test_formats_and_prompts(folder: Path) -> None:
    files = {"train": str(folder / "train.jsonl")}
    data = make("json", data_files=files, prompt_field="q", completion_field="a", val_share=0.1)
    batch = next(iter(data.batches("train", 1000, train=False)))
    learnt = data.spec.tokenizer.decode(batch["input_ids"][batch["labels"] != -100], skip_special_tokens=True)
    assert learnt.isdigit()


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"HubText: dataset '.*nowhere' cannot be loaded \(.*\); check the name, config"
    ):
        make(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"my_texts train has no field 'body'; choose from a, q, text"):
        make(folder, text_field="body")
    with pytest.raises(InputError, match="HubText: splits has an unknown key 'validation'; choose from test, train"):
        make(folder, splits={"validation": "validation"})
    with pytest.raises(InputError, match="HubText: splits must name train, got val"):
        make(folder, splits={"val": "validation"})
    (folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"has the splits validation, none called train; map it in splits="):
        make(folder)
