"""What every data set offers: a spec, a fingerprint, sizes per split and deterministic batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from kdkit.errors import InputError

__all__ = ["Batch", "DataModule", "ImageSpec", "LabelledTextSpec", "Spec", "Split", "TextSpec", "check_views"]

Batch = dict[str, Tensor]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """Shape of an image classification set. Images come as float32 in [0, 1], never normalised:
    each network normalises its own input with ``mean``/``std`` of its own."""

    num_classes: int
    in_chans: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    kind: Literal["image"] = "image"


@dataclass(frozen=True, slots=True)
class TextSpec:
    """Shape of a text set: fixed-length rows of token ids."""

    vocab_size: int
    context: int
    pad_token_id: int
    eos_token_id: int
    bos_token_id: int | None = None
    tokenizer: Any = field(default=None, compare=False, repr=False)
    """A ``transformers.PreTrainedTokenizerFast``, exported beside the student."""
    teacher: TextSpec | None = None
    """The same for the teacher, where it has a tokenizer of its own; ``None`` where both share one."""
    sources: tuple[str, ...] = ()
    """Names of the sources of the documents, where the set tells them apart; batches number them by ``source``."""
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class LabelledTextSpec:
    """Shape of a set of texts, or pairs of texts, with one class each: rows of token ids of different length."""

    num_classes: int
    vocab_size: int
    context: int
    """Tokens of the longest row, the special ones included."""

    pad_token_id: int
    class_names: tuple[str, ...] = ()
    measure: str = "accuracy"
    """Which metric says what network is better: ``accuracy``, ``f1`` or ``matthews``; ``cosine`` for texts with target
    vectors in place of classes."""

    tokenizer: Any = field(default=None, compare=False, repr=False)
    """A ``transformers.PreTrainedTokenizerFast``, exported beside the student."""
    kind: Literal["labelled text"] = "labelled text"


Spec = ImageSpec | TextSpec | LabelledTextSpec


def check_views(views: int) -> int:
    """``views``, if it is a number of views that there is."""
    if isinstance(views, bool) or views not in (1, 2):
        raise InputError(f"views must be 1 or 2, got {views!r}")
    return views


class DataModule(ABC):
    """A data set with splits.

    Image batches hold ``image`` float32 ``[B, C, H, W]`` in [0, 1], ``label`` int64 ``[B]`` (-100 = unlabelled),
    ``index`` int64 ``[B]`` (position in the split, stable over epochs and runs).
    Text batches hold ``input_ids`` and ``labels`` int64 ``[B, T]`` (labels are NOT shifted, -100 where nothing is
    to be learnt: prompts, padding), ``document_ids`` int64 ``[B, T]`` (0 = padding; tokens attend within one
    document only), ``position_ids`` int64 ``[B, T]`` (restart with each document), ``num_bytes`` int64 ``[B, T]``
    (UTF-8 bytes that each token stands for) and ``index`` int64 ``[B]``; where the set tells sources apart also
    ``source`` int64 ``[B, T]``, the place of each token's source in ``spec.sources`` (-1 for padding).
    Where the teacher has a tokenizer of its own they also hold the same text in its tokens, ``teacher_input_ids``,
    ``teacher_document_ids`` and ``teacher_position_ids`` int64 ``[B, T']``, and by ``groups`` ``[B, T]`` and
    ``teacher_groups`` ``[B, T']`` which tokens cover the same bytes (numbered from 1 in each row, 0 = compared with
    nothing).
    Batches of labelled texts hold ``input_ids``, ``attention_mask`` (1 for tokens, 0 for padding) and
    ``token_type_ids`` (1 for the second text of a pair) int64 ``[B, T]`` with ``T`` the longest of the batch,
    ``label`` int64 ``[B]`` (-100 = unlabelled) and ``index`` int64 ``[B]``.

    Everything is a function of ``(seed, epoch, batch number)`` and never of global random state, so that a
    resumed, a sharded and an unbroken run see the same batches.
    """

    name: str
    spec: Spec
    views: int = 1
    """How many times a training batch holds each image: with 2, row ``i`` and row ``i + B`` of a batch of ``B`` samples
    are two views of one sample, and its label and index stand there twice. Other batches hold one view."""

    fixed: bool = False
    """Whether training batches show every sample exactly as evaluation batches do, so that answers to it may be kept.
    A set says so itself; with augmentation it must not."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) over content, splits and every setting that changes what a network is shown."""

    @abstractmethod
    def size(self, split: Split) -> int:
        """Number of samples (rows for text) in a split; 0 when there is none."""

    @abstractmethod
    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Micro-batches of one epoch, on ``device``.

        Micro-batch ``j`` of the epoch goes to rank ``j % world_size``; ``start`` skips that many micro-batches of
        this rank without computing them. With ``train`` the order is a permutation drawn from ``(seed, epoch)``,
        augmentation is on (drawn from ``(seed, epoch, j)``), and the last incomplete micro-batch is dropped;
        without it the order is fixed, nothing is random and nothing is dropped.
        """

    def labels(self, split: Split) -> Tensor:
        """The label of every sample of a split with labels, int64 ``[size]``, by index; -100 = none."""
        return torch.cat([batch["label"] for batch in self.batches(split, 512, train=False)])

    def num_batches(self, split: Split, batch_size: int, *, train: bool) -> int:
        """Micro-batches in an epoch over all ranks together."""
        size = self.size(split)
        return size // batch_size if train else -(-size // batch_size)

    def describe(self) -> dict[str, Any]:
        """Name, fingerprint and sizes, as they go into a run's results."""
        sizes = {split: self.size(split) for split in ("train", "val", "test")}
        return {"name": self.name, "fingerprint": self.fingerprint, **sizes}
