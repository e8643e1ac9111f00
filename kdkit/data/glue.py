"""The classification tasks of GLUE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdkit._files import sha256_json
from kdkit.data._base import LabelledTextSpec, Split
from kdkit.data._glue_files import SUBSETS, Subset, read_hub, read_release
from kdkit.data._labelled_texts import Example, LabelledTexts
from kdkit.data._subsets import hold_out
from kdkit.data._token_sequences import TokenSequences, random_sequences
from kdkit.errors import InputError, did_you_mean

__all__ = ["GLUE"]


class GLUE(LabelledTexts):
    """A task of GLUE: single sentences (CoLA, SST-2) or pairs (MRPC, QQP, MNLI, QNLI, RTE) with one class each.

    The labels of GLUE's own test split are not public, so ``test`` is the development split, as in papers, and
    ``val`` is held out of the training split, class shares kept. Lines of a file with too few columns are left out, as
    long as they are few (QQP has some).

    Args:
        subset: ``cola``, ``sst2``, ``mrpc``, ``qqp``, ``mnli``, ``qnli`` or ``rte``.
        root: folder that holds the official release (``SST-2/train.tsv``, ``SST-2/dev.tsv``, ...); ``None`` asks the
            ``datasets`` library, which takes the hub or what it kept of it.
        mismatched: MNLI only: test on the development split of other genres than those of the training split.
        val_share: share of the training split that validates; 0 trains on all of it, as papers do.
        tokenizer: a folder, a hub name or a fast tokenizer, the same for both networks; ``None`` trains a byte-level
            BPE on the training split.
        vocab_size: entries of the trained tokenizer.
        context: tokens of the longest row, special ones included; longer texts are cut.
        made_up: this many random texts in the shape of the task, in BERT's vocabulary of 30,522, in place of its files:
            to try a path, or its cost, without them.

    Raises:
        DataError: when files are missing or damaged, naming them and where they are to be had.
        InputError: when an option is out of range; STS-B has no classes and is refused.

    Source: Wang et al., GLUE: a multi-task benchmark and analysis platform for natural language understanding,
    arXiv:1804.07461, 2018.
    """

    def __init__(
        self,
        subset: str = "sst2",
        *,
        root: str | None = None,
        mismatched: bool = False,
        val_share: float = 0.05,
        tokenizer: Any = None,
        vocab_size: int = 8192,
        context: int = 128,
        made_up: int | None = None,
    ) -> None:
        chosen = SUBSETS[_known(subset, mismatched)]
        name = f"glue_{subset}{'_mismatched' if mismatched else ''}"
        if made_up is not None:
            self._make_up(name, chosen, context, made_up)
            return
        if not 0 <= val_share < 1:
            raise InputError(f"GLUE: val_share must be at least 0 and less than 1, got {val_share}")
        dev = "dev_mismatched.tsv" if mismatched else chosen.dev
        if root is None:
            train, test = read_hub(subset, chosen, dev)
        else:
            train, test = read_release(Path(root).expanduser(), chosen, dev)
        splits: dict[Split, list[Example]] = {"train": train, "test": test}
        if val_share:
            labels = torch.tensor([example.label for example in train])
            kept, held = hold_out(labels, max(1, round(val_share * len(train))), f"GLUE {subset}: val_share")
            splits["train"], splits["val"] = [train[i] for i in kept.tolist()], [train[i] for i in held.tolist()]
        super().__init__(
            splits,
            name=name,
            class_names=chosen.names,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            context=context,
            measure=chosen.measure,
        )

    def _make_up(self, name: str, chosen: Subset, context: int, size: int) -> None:
        if size < 4 or context < 4:
            raise InputError(f"GLUE: made_up and context must be at least 4, got {size} and {context}")
        spec = LabelledTextSpec(len(chosen.names), 30522, context, 0, chosen.names, chosen.measure)
        splits = random_sequences(spec, {"train": size, "val": max(4, size // 4), "test": max(4, size // 4)})
        fingerprint = sha256_json(["made-up GLUE 1", name, context, size])
        TokenSequences.__init__(self, splits, name=f"{name}_made_up", spec=spec, fingerprint=fingerprint)


def _known(subset: str, mismatched: bool) -> str:
    name = str(subset).lower().replace("-", "")
    if name == "stsb":
        raise InputError(
            f"GLUE: subset {subset!r} is a regression of scores from 0 to 5, and kdkit's task has classes; choose from "
            f"{', '.join(SUBSETS)}"
        )
    if subset not in SUBSETS:
        raise InputError(f"GLUE: there is no subset {subset!r}{did_you_mean(name, SUBSETS)}")
    if mismatched and subset != "mnli":
        raise InputError(f"GLUE: mismatched is about subset mnli, got mismatched=True for {subset!r}; leave it out")
    return subset
