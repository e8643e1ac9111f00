"""The tasks of GLUE: columns of the official files and of the hub's tables, classes, and how both are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.data._labelled_texts import Example
from kdkit.errors import DataError

__all__ = ["SUBSETS", "Subset", "read_hub", "read_release"]

HUB = "nyu-mll/glue"
PAGE = "https://gluebenchmark.com/tasks"
_SPOILT = 0.001
"""Share of lines with too few columns that are left out; QQP has some."""


@dataclass(frozen=True, slots=True)
class Subset:
    """One task of GLUE.

    Attributes:
        folder: of the official release.
        texts: columns with the one text or the two, by their name in the header of the release's files.
        label: column with the class.
        classes: as the release writes them, in the order of their numbers on the hub.
        names: what they are called.
        hub: columns of the hub's table.
        measure: what GLUE ranks by; where it takes two, the one that is not accuracy.
        dev: file with the labelled split that is held out.
        columns: by name where the files have no header.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    hub: tuple[str, ...]
    measure: str = "accuracy"
    dev: str = "dev.tsv"
    columns: tuple[str, ...] = ()


_ENTAILMENT = ("entailment", "not_entailment")
_TWO = ("sentence1", "sentence2")

SUBSETS: dict[str, Subset] = {
    "cola": Subset(
        "CoLA",
        ("sentence",),
        "label",
        ("0", "1"),
        ("unacceptable", "acceptable"),
        ("sentence",),
        measure="matthews",
        columns=("source", "label", "star", "sentence"),
    ),
    "sst2": Subset("SST-2", ("sentence",), "label", ("0", "1"), ("negative", "positive"), ("sentence",)),
    "mrpc": Subset(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("0", "1"),
        ("not_equivalent", "equivalent"),
        _TWO,
        measure="f1",
    ),
    "qqp": Subset(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("0", "1"),
        ("not_duplicate", "duplicate"),
        ("question1", "question2"),
        measure="f1",
    ),
    "mnli": Subset(
        "MNLI",
        _TWO,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
        ("premise", "hypothesis"),
        dev="dev_matched.tsv",
    ),
    "qnli": Subset("QNLI", ("question", "sentence"), "label", _ENTAILMENT, _ENTAILMENT, ("question", "sentence")),
    "rte": Subset("RTE", _TWO, "label", _ENTAILMENT, _ENTAILMENT, _TWO),
}


def _advice(subset: Subset, dev: str) -> str:
    files = f"{subset.folder}/train.tsv and {subset.folder}/{dev}"
    return f"get {files} from {PAGE}, and give the folder that holds {subset.folder} as data.root=… (data_dir=… for a "


def read_release(root: Path, subset: Subset, dev: str) -> tuple[list[Example], list[Example]]:
    """The training and the held-out examples of a folder in the form of the official release.

    Raises:
        DataError: naming the files that are missing, or what is wrong with one.
    """
    folder = root / subset.folder
    missing = [name for name in ("train.tsv", dev) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"GLUE: {folder} holds no {' and no '.join(missing)}; {_advice(subset, dev)}benchmark table)")
    train, held = (_read(folder / name, subset) for name in ("train.tsv", dev))
    return train, held


def _read(path: Path, subset: Subset) -> list[Example]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"GLUE: {path} cannot be read ({error}); get it again from {PAGE}") from None
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    header = list(subset.columns) or (rows.pop(0) if rows else [])
    lacking = [name for name in (*subset.texts, subset.label) if name not in header]
    if lacking:
        raise DataError(
            f"GLUE: {path} must have the columns {', '.join((*subset.texts, subset.label))}, and {lacking[0]!r} is "
            f"not among {', '.join(header[:20]) or 'none'}; get it again from {PAGE}"
        )
    places = [header.index(name) for name in subset.texts]
    where, numbers = header.index(subset.label), {name: number for number, name in enumerate(subset.classes)}
    whole = [row for row in rows if len(row) >= len(header) and row[where] in numbers]
    if not whole or len(rows) - len(whole) > max(3, _SPOILT * len(rows)):
        raise DataError(
            f"GLUE: {path} has {len(rows) - len(whole)} of {len(rows)} lines without {len(header)} columns and one of "
            f"the labels {', '.join(subset.classes)}; get it again from {PAGE}"
        )
    return [_example([row[place] for place in places], numbers[row[where]]) for row in whole]


def _example(texts: Sequence[str], label: int) -> Example:
    return Example(texts[0], label, texts[1] if len(texts) > 1 else None)


def read_hub(name: str, subset: Subset, dev: str) -> tuple[list[Example], list[Example]]:
    """The same from the hub, or from what its library kept of it.

    Raises:
        DataError: when neither is to be had, saying where the files are.
    """
    import datasets

    split = "validation" + dev.removeprefix("dev").removesuffix(".tsv")
    try:
        loaded = datasets.load_dataset(HUB, name, split=["train", split])
    except Exception as error:  # the library raises errors of many kinds, its own and those of its dependencies
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        offline = " with HF_HUB_OFFLINE set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise DataError(
            f"GLUE: {name} cannot be loaded from the hub{offline} ({reason}); {_advice(subset, dev)}benchmark table)"
        ) from None
    train, held = (_table(part, subset) for part in loaded)
    return train, held


def _table(part: Any, subset: Subset) -> list[Example]:
    texts = [part[column] for column in subset.hub]
    return [_example([column[row] for column in texts], label) for row, label in enumerate(part["label"])]
