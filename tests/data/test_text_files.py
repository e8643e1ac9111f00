"""A user's own text, from files to rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdkit.data import TextFiles
from kdkit.data._base import Batch, Split
from kdkit.errors import DataError, InputError

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def make(paths: Any, **options: Any) -> TextFiles:
    return TextFiles(paths, **{"vocab_size": 280, "context": 16} | options)


def everything(data: TextFiles, split: Split) -> Batch:
    return next(iter(data.batches(split, 100_000, train=False)))


def texts(data: TextFiles, split: Split) -> list[str]:
    """The documents of a split, put together again from its rows."""
    batch, out = everything(data, split), []
    for ids, documents in zip(batch["input_ids"], batch["document_ids"]):
        for number in range(1, int(documents.max()) + 1):
            piece = ids[documents == number].tolist()
            if piece[0] == data.spec.bos_token_id:
                out.append([])
            out[-1] += piece[1:]
    return [data.spec.tokenizer.decode(ids, skip_special_tokens=True) for ids in out]


@pytest.mark.parametrize("packing", [True, False])
def test_texts_come_back_whole_and_in_one_split(jsonl: Path, make_text: Callable[[int], str], packing: bool) -> None:
    data = make(str(jsonl), packing=packing, val_share=0.2, test_share=0.2)
    found = [text for split in SPLITS for text in texts(data, split)]
    assert sorted(found) == sorted(make_text(i) for i in range(60))


@pytest.mark.parametrize("packing", [True, False])
def test_bytes_of_the_targets_are_those_of_the_texts(jsonl: Path, packing: bool) -> None:
    data = make(str(jsonl), packing=packing, val_share=0.2, test_share=0.2)
    for split in SPLITS:
        batch = everything(data, split)
        documents = batch["document_ids"]
        target = (documents[:, 1:] == documents[:, :-1]) & (batch["labels"][:, 1:] != -100)
        want = sum(len(text.encode()) for text in texts(data, split))
        assert int(batch["num_bytes"][:, 1:][target].sum()) == want
        assert int(batch["num_bytes"].sum()) == want


def test_labels_are_the_ids_or_nothing(jsonl: Path) -> None:
    batch = everything(make(str(jsonl)), "train")
    learnt = batch["labels"] != -100
    assert torch.equal(batch["labels"][learnt], batch["input_ids"][learnt])
    assert not learnt[batch["document_ids"] == 0].any()
    assert not learnt[batch["position_ids"] == 0].any()
    assert batch["document_ids"].max() > 1


def test_prompts_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"q": f"ask {i}? ", "a": f"answer {i}"}) + "\n" for i in range(30)))
    data = make(str(path), prompt_field="q", completion_field="a", context=64)
    batch = everything(data, "train")
    for ids, labels, documents in zip(batch["input_ids"], batch["labels"], batch["document_ids"]):
        for number in range(1, int(documents.max()) + 1):
            here = documents == number
            learnt = data.spec.tokenizer.decode(ids[here & (labels != -100)])
            asked = data.spec.tokenizer.decode(ids[here & (labels == -100)])
            assert learnt.removeprefix("answer ").removesuffix("<|eos|>").isdigit()
            assert asked == learnt.replace("answer", "ask").replace("<|eos|>", "? ")


def test_named_splits_are_kept_and_others_drawn(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(20)))
    paths = {"train": str(tmp_path / "train.txt"), "test": str(tmp_path / "test.txt")}
    data = make(paths, separator="\n", val_share=0.2)
    assert {text.split()[0] for text in texts(data, "test")} == {"test"}
    assert len(texts(data, "test")) == 20
    assert len(texts(data, "train")) + len(texts(data, "val")) == 20
    assert make(paths, separator="\n", val_share=0).size("val") == 0


def test_a_second_run_reads_the_store(jsonl: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(str(jsonl))
    files = sorted(path.name for path in store.rglob("*") if path.is_file())
    assert files == ["rows.safetensors", "tokenizer.json"]

    def fail(*args: Any) -> None:
        raise AssertionError("the documents were read again")

    monkeypatch.setattr("kdkit.data.text_files.read_file", fail)
    second = make(str(jsonl))
    assert second.fingerprint == first.fingerprint
    for split in SPLITS:
        one, two = everything(first, split), everything(second, split)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_damaged_store_is_made_again(jsonl: Path, store: Path) -> None:
    first = everything(make(str(jsonl)), "train")
    (path,) = store.rglob("rows.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    second = everything(make(str(jsonl)), "train")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert path.read_bytes() == content


def test_a_store_that_cannot_be_written_costs_a_warning(
    jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDKIT_STORE", str(tmp_path / "file" / "store"))
    with pytest.warns(UserWarning, match=r"is not kept \(.*\); set KDKIT_STORE to a folder with room"):
        data = make(str(jsonl))
    assert data.size("train") > 0


def test_fingerprint(jsonl: Path, tmp_path: Path) -> None:
    plain = make(str(jsonl)).fingerprint
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(jsonl.read_bytes())
    assert make([str(moved)]).fingerprint == plain
    tokenizer = make(str(jsonl), vocab_size=270).spec.tokenizer
    changes: list[dict[str, Any]] = [
        {"vocab_size": 270},
        {"context": 17},
        {"packing": False},
        {"val_share": 0.2},
        {"test_share": 0.2},
    ]
    seen = {make(str(jsonl), **change).fingerprint for change in changes} | {plain}
    moved.write_text(moved.read_text(encoding="utf-8").replace("the", "THE"), encoding="utf-8")
    seen.add(make(str(moved)).fingerprint)
    assert len(seen) == len(changes) + 2
    assert make(str(jsonl), tokenizer=tokenizer).fingerprint == make(str(jsonl), vocab_size=270).fingerprint


def test_spec(jsonl: Path) -> None:
    spec = make(str(jsonl)).spec
    assert (spec.vocab_size, spec.context) == (280, 16)
    assert (spec.pad_token_id, spec.eos_token_id, spec.bos_token_id) == (0, 1, 1)
    assert spec.tokenizer.model_max_length == 16


def test_bad_input(jsonl: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("just one")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    for call, error, message in (
        (lambda: make(str(one)), DataError, r"TextFiles: 1 different document\(s\) cannot be divided"),
        (
            lambda: make({"train": str(one), "val": str(empty)}, test_share=0),
            DataError,
            "the val split holds no document",
        ),
        (lambda: make(str(empty)), DataError, "TextFiles: the train split holds no document with text"),
        (lambda: make(str(tmp_path / "no.txt")), DataError, r"no.txt does not exist"),
        (lambda: make({"trian": str(one)}), InputError, "paths has an unknown split 'trian'; did you mean 'train'"),
        (lambda: make({"val": str(one)}), InputError, "TextFiles: paths must name train, got val"),
        (lambda: make(str(jsonl), text_field="body"), DataError, r"line 1 has no field 'body'; choose from text"),
        (lambda: make(str(jsonl), prompt_field="text"), InputError, "prompt_field and completion_field go together"),
        (lambda: make(str(jsonl), context=1), InputError, "text_files: context must be at least 2 tokens, got 1"),
        (lambda: make(str(jsonl), vocab_size=10), InputError, "vocab_size must be at least 258"),
        (lambda: make(str(jsonl), val_share=1.0), InputError, "must add up to less than 1, got 1.0 and 0.05"),
    ):
        with pytest.raises(error, match=message):
            call()
