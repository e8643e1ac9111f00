"""Token sequences of different length with one label each: every batch is as wide as its longest one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kdkit.data._base import Batch, DataModule, LabelledTextSpec, Split
from kdkit.data._order import generator, micro_batches, permutation

__all__ = ["TokenSequences", "random_sequences"]


class TokenSequences(DataModule):
    """Sequences in host memory, one after the other, padded batch by batch.

    Args:
        splits: per split ``tokens`` int32 ``[total]`` and ``types`` uint8 ``[total]`` (1 for the second text of a
            pair), both of all sequences in a row; ``lengths`` int64 ``[N]``, at least 1 each; ``label`` int64 ``[N]``;
            maybe ``target`` ``[N, D]``.
        name: how reports call the set.
        spec: its shape.
        fingerprint: SHA-256 (hex) over all of it.
    """

    spec: LabelledTextSpec
    fixed = True

    def __init__(
        self, splits: Mapping[Split, Mapping[str, Tensor]], *, name: str, spec: LabelledTextSpec, fingerprint: str
    ) -> None:
        self.name, self.spec, self._fingerprint = name, spec, fingerprint
        self._splits = {split: dict(part) for split, part in splits.items()}
        self._starts = {split: part["lengths"].cumsum(0) - part["lengths"] for split, part in splits.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts, labels, splits, tokenizer and length."""
        return self._fingerprint

    def size(self, split: Split) -> int:
        """Number of texts in a split; 0 when there is none."""
        return len(self._splits[split]["label"]) if split in self._splits else 0

    def labels(self, split: Split) -> Tensor:
        """The label of every text of a split, int64 ``[size]``, by index."""
        return self._splits[split]["label"].clone()

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
        """See :meth:`DataModule.batches`."""
        size = self.size(split)
        numbers = micro_batches(size, batch_size, train=train, start=start, rank=rank, world_size=world_size)
        if not numbers:
            return
        order = permutation(size, seed, epoch) if train else torch.arange(size)
        for j in numbers:
            batch = self._padded(split, order[j * batch_size : (j + 1) * batch_size])
            yield {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    def _padded(self, split: Split, index: Tensor) -> Batch:
        part = self._splits[split]
        lengths = part["lengths"][index]
        place = torch.arange(int(lengths.max()))
        inside = place < lengths[:, None]
        where = (self._starts[split][index, None] + place).clamp(max=len(part["tokens"]) - 1)
        batch = {
            "input_ids": part["tokens"][where].long().masked_fill(~inside, self.spec.pad_token_id),
            "attention_mask": inside.long(),
            "token_type_ids": part["types"][where].long().masked_fill(~inside, 0),
            "label": part["label"][index],
            "index": index,
        }
        return {**batch, "target": part["target"][index]} if "target" in part else batch


def random_sequences(spec: LabelledTextSpec, sizes: Mapping[Split, int]) -> dict[Split, dict[str, Tensor]]:
    """Random tokens with labels that take turns: nothing can be learnt, but a step costs what a real one does.

    Lengths are drawn evenly from 8 to the longest; the last third of each sequence counts as a second text.
    """
    out: dict[Split, dict[str, Tensor]] = {}
    for split, size in sizes.items():
        random = generator("random sequences", split, size, spec.vocab_size, spec.context)
        lengths = torch.randint(min(8, spec.context), spec.context + 1, (size,), generator=random)
        total = int(lengths.sum())
        tokens = torch.randint(1, spec.vocab_size, (total,), generator=random, dtype=torch.int32)
        place = torch.arange(total) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        second = place >= torch.repeat_interleave(lengths - lengths // 3, lengths)
        label = torch.arange(size) % spec.num_classes
        out[split] = {"tokens": tokens, "types": second.to(torch.uint8), "lengths": lengths, "label": label}
    return out
