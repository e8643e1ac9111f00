"""GLUE in the form of its official release, from the library's tables, and made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdkit.data import GLUE
from kdkit.data._glue_files import SUBSETS, read_hub
from kdkit.errors import DataError, InputError

HEADERS = {
    "cola": (None, "src\t{label}\t*\t{one}"),
    "sst2": ("sentence\tlabel", "{one}\t{label}"),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{one}\t{two}"),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{n}\t1\t2\t{one}\t{two}\t{label}"),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "{n}\t1\t1\tfiction\ta\tb\tc\td\t{one}\t{two}\t{label}\t{label}",
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "{n}\t{one}\t{two}\t{label}"),
    "rte": ("index\tsentence1\tsentence2\tlabel", "{n}\t{one}\t{two}\t{label}"),
}
"""Header and form of a line of each task's files."""


def write(root: Path, subset: str, sizes: dict[str, int]) -> None:
    header, form = HEADERS[subset]
    classes = SUBSETS[subset].classes
    (root / SUBSETS[subset].folder).mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        lines = [header] if header else []
        for n in range(size):
            words = {"one": f'{name} "text {n}', "two": f"other {n}", "label": classes[n % len(classes)], "n": n}
            lines.append(form.format(**words))
        (root / SUBSETS[subset].folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(root: Path | None, subset: str = "sst2", **options: Any) -> GLUE:
    options = {
        "root": root if root is None else str(root),
        "vocab_size": 300,
        "context": 64,
        "val_share": 0.1,
    } | options
    return GLUE(subset, **options)


def texts(data: GLUE, split: Any) -> list[str]:
    batch = next(iter(data.batches(split, 1000, train=False)))
    return [data.spec.tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_official_release(tmp_path: Path, subset: str) -> None:
    chosen = SUBSETS[subset]
    write(tmp_path, subset, {"train.tsv": 40, chosen.dev: 12})
    data = make(tmp_path, subset)
    assert [data.size(split) for split in ("train", "val", "test")] == [36, 4, 12]
    classes = len(chosen.classes)
    assert data.spec.num_classes == classes and data.spec.measure == chosen.measure
    assert data.labels("test").tolist() == [n % classes for n in range(12)]
    expected = [f'{chosen.dev} "text {n}' + (f"other {n}" if len(chosen.texts) == 2 else "") for n in range(12)]
    assert texts(data, "test") == expected
    assert not set(texts(data, "train")) & set(texts(data, "val"))
    counts = torch.bincount(data.labels("val"), minlength=classes)
    assert int(counts.max() - counts.min()) <= 1
    assert data.spec.class_names == chosen.names


def test_the_names_of_classes_are_those_of_the_hub() -> None:
    """The numbers of the hub are those of the names, so that a classifier trained on one fits the other."""
    assert SUBSETS["mnli"].names == ("entailment", "neutral", "contradiction")
    assert SUBSETS["rte"].names == SUBSETS["qnli"].names == ("entailment", "not_entailment")
    assert SUBSETS["cola"].names[1] == "acceptable" and SUBSETS["sst2"].names[1] == "positive"


def test_mismatched(tmp_path: Path) -> None:
    write(tmp_path, "mnli", {"train.tsv": 20, "dev_matched.tsv": 6, "dev_mismatched.tsv": 9})
    assert make(tmp_path, "mnli").size("test") == 6
    other = make(tmp_path, "mnli", mismatched=True)
    assert other.size("test") == 9 and other.name == "glue_mnli_mismatched"
    with pytest.raises(InputError, match="GLUE: mismatched is about subset mnli"):
        make(tmp_path, "sst2", mismatched=True)


def test_a_few_spoilt_lines_are_left_out_and_many_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "qqp", {"train.tsv": 40, "dev.tsv": 12})
    path = tmp_path / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "41\t1\t2\tbroken\n42\t1\t2\ta\tb\t7\n")
    data = make(tmp_path, "qqp", val_share=0)
    assert data.size("train") == 40 and data.size("val") == 0
    path.write_text(path.read_text() + "broken\n" * 5)
    with pytest.raises(DataError, match=r"train.tsv has 7 of 47 lines without 6 columns and one of the labels 0, 1"):
        make(tmp_path, "qqp")
    path.write_text("sentence\tlabel\na\t1\n")
    with pytest.raises(DataError, match="must have the columns question1, question2, is_duplicate, and 'question1' is"):
        make(tmp_path, "qqp")


def test_missing_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, "rte", {"train.tsv": 20})
    with pytest.raises(DataError) as error:
        make(tmp_path, "rte")
    for word in ("RTE holds no dev.tsv", "gluebenchmark.com", "the folder that holds RTE as data.root=", "data_dir="):
        assert word in str(error.value)
    with pytest.raises(DataError, match=r"SST-2 holds no train.tsv and no dev.tsv"):
        make(tmp_path)


def test_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name: str, config: str, split: list[str]) -> list[Any]:
        asked.append((name, config, split))
        rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}
        return [datasets.Dataset.from_dict(rows), datasets.Dataset.from_dict(rows)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    train, _ = read_hub("mnli", SUBSETS["mnli"], "dev_mismatched.tsv")
    assert asked == [("nyu-mll/glue", "mnli", ["train", "validation_mismatched"])]
    assert [tuple(example) for example in train] == [("a", 2, "c"), ("b", 0, "d")]

    def refuse(*args: Any, **options: Any) -> Any:
        raise ConnectionError("no way\nout")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"sst2 cannot be loaded from the hub.* \(no way\); get SST-2/train.tsv and SST-2"
    ):
        make(None)


@pytest.mark.parametrize("subset", ["mnli", "cola"])
def test_made_up_texts_have_the_true_shape(subset: str) -> None:
    data = make(None, subset, made_up=16, context=32)
    assert [data.size(split) for split in ("train", "val", "test")] == [16, 4, 4]
    assert data.spec.vocab_size == 30522 and data.spec.measure == SUBSETS[subset].measure
    batch = next(iter(data.batches("train", 16, train=True)))
    assert batch["input_ids"].shape[1] <= 32 and set(batch["label"].tolist()) == set(range(data.spec.num_classes))
    assert bool((batch["attention_mask"].sum(1) >= 8).all()) and int(batch["token_type_ids"].max()) == 1
    again = next(iter(make(None, subset, made_up=16, context=32).batches("train", 16, train=True)))
    assert all(batch[name].equal(again[name]) for name in batch)


def test_options() -> None:
    for subset in ("stsb", "STS-B"):
        with pytest.raises(InputError, match=r"is a regression of scores from 0 to 5.* choose from cola, sst2"):
            make(None, subset)
    with pytest.raises(InputError, match="GLUE: there is no subset 'sst-2'; did you mean 'sst2'"):
        make(None, "sst-2")
    with pytest.raises(InputError, match=r"val_share must be at least 0 and less than 1, got 1.0"):
        make(None, val_share=1.0)
    with pytest.raises(InputError, match="made_up and context must be at least 4, got 2 and 64"):
        make(None, made_up=2)
