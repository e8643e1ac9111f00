"""A teacher that has answered already: its best entries per position, out of a cache on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit._files import sha256_json
from kdkit.data._base import Batch, DataModule
from kdkit.errors import ConfigError, InputError
from kdkit.outputs import ModelOutput, SparseLogits
from kdkit.tasks._base import Task
from kdkit.teachers._base import Teacher
from kdkit.teachers._cache_files import Shard, open_shard, read_manifest, read_shard, refuse_difference

__all__ = ["CachedTeacher", "check_samples", "normalised", "placed", "positions_of", "said", "sample_checks", "widened"]


class CachedTeacher(Teacher):
    """Reads the answers of a teacher that ``kdkit cache`` wrote, for the training samples they were written for.

    Answers come as :class:`~kdkit.outputs.SparseLogits`, and as logits ``[B, C]`` or ``[B, T, V]`` in which the
    mass of the entries that were not kept is spread evenly over them. Shards are mapped into memory and held against
    their checksum when they are first used.

    Args:
        task: of the run.
        data: the training samples.
        folder: that ``kdkit cache`` printed.
        settings: of the data, to say what differs where something does.

    Raises:
        InputError: if the folder holds no cache, or an unfinished one.
        ConfigError: if the cache is of other data, or samples look different each time they are drawn.
    """

    live = False

    def __init__(self, task: Task, data: DataModule, *, folder: str, settings: Mapping[str, Any] | None = None) -> None:
        self.task, self.folder = task, Path(folder)
        self.definition, self.facts = read_manifest(self.folder)
        self.dense = True
        self._belongs_to(data, settings or {})
        self._shards = [self._found(number) for number in range(self.definition.shards)]
        self._open: dict[int, dict[str, Tensor]] = {}

    def _belongs_to(self, data: DataModule, settings: Mapping[str, Any]) -> None:
        check_samples(data, f"teacher.cached.folder={self.folder}")
        own = {"name": data.name, "fingerprint": data.fingerprint, "settings": dict(settings)}
        here = replace(self.definition, data=own, samples=data.size(self.definition.split))  # type: ignore[arg-type]
        refuse_difference(self.folder, self.definition, here, "use the data that it was made of, or make another")

    def _found(self, number: int) -> Shard:
        shard = read_shard(self.folder, number)
        if shard is None:
            raise InputError(
                f"{self.folder} lacks shard {number} of {self.definition.shards}, or it is cut off; repeat the "
                "`kdkit cache` command that made it, which goes on where it was stopped"
            )
        return shard

    @property
    def name(self) -> str:
        """Of the network that answered."""
        return str(self.definition.teacher["name"])

    @property
    def origin(self) -> str:
        """The cache."""
        return f"answers out of the cache {self.folder}"

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the teacher, the data and what was kept of its answers."""
        return sha256_json(self.definition.identifying())

    def tap(self, layers: Mapping[str, str]) -> None:
        """Nothing can be tapped.

        Raises:
            ConfigError: if layers are asked for.
        """
        if layers:
            raise ConfigError(
                f"features ({', '.join(layers)}) are not in a cache of logits; use losses on logits, or the teacher "
                "itself in place of teacher=cached"
            )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ModelOutput:
        """The answers to these samples.

        Raises:
            InputError: for samples other than those of the cache.
            CheckpointError: if a shard is damaged.
        """
        device = batch["index"].device
        where = positions_of(self.task, batch)
        parts = [self._sample(index) for index in batch["index"].tolist()]
        self._same_samples(batch, torch.stack([part["check"] for part in parts]))
        kept = {name: torch.cat([part[name] for part in parts]).to(device) for name in ("ids", "log_probs", "rest")}
        if len(kept["rest"]) != int(where.sum()):
            raise InputError(f"{self.folder} holds other positions of these samples; make the cache again")
        head, rest = normalised(kept["log_probs"], kept["rest"])
        law = SparseLogits(kept["ids"], head, rest, self.definition.classes, self.definition.temperature)
        return said(placed(law, where), dense=self.dense)

    def _sample(self, index: int) -> dict[str, Tensor]:
        """What is kept of one sample, views into the mapped file."""
        number, place = divmod(index, self.definition.shard_samples)
        if number not in self._open:
            self._open[number] = open_shard(self._shards[number])
        shard = self._open[number]
        start, stop = shard["offsets"][place : place + 2].tolist()
        names = ("ids", "log_probs", "rest")
        return {"check": shard["check"][place], **{name: widened(shard[name][start:stop]) for name in names}}

    def _same_samples(self, batch: Batch, known: Tensor) -> None:
        wrong = (sample_checks(batch).cpu() != known).nonzero().flatten().tolist()
        if wrong:
            number = int(batch["index"][wrong[0]])
            raise InputError(
                f"{self.folder}: sample {number} of this batch is not the sample {number} that was cached; a cached "
                f"teacher answers the {self.definition.split} split alone"
            )

    def teacher_row(self) -> dict[str, Any] | None:
        """What the teacher itself achieves, measured when the cache was made."""
        row = self.facts.get("row")
        return dict(row) if isinstance(row, Mapping) else None


def widened(values: Tensor) -> Tensor:
    """Stored numbers as they are computed with: int64 or float32."""
    return values.float() if values.is_floating_point() else values.long()


def normalised(log_probs: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms that were rounded, with their sum brought back to 1."""
    total = torch.logaddexp(log_probs.logsumexp(dim=-1), rest)
    return log_probs - total.unsqueeze(-1), rest - total


def placed(law: SparseLogits, where: Tensor) -> SparseLogits:
    """Answers ``[N, k]`` put where they count, in order; uniform elsewhere.

    Args:
        law: of the positions that count.
        where: bool ``[B]`` or ``[B, T]`` with N true entries.
    """
    k, classes, device = law.ids.shape[-1], law.classes, where.device
    shape = (*where.shape, k)
    ids = torch.arange(k, device=device).expand(shape).clone()
    head = torch.full(shape, -math.log(classes), device=device)
    left = math.log(classes - k) - math.log(classes) if k < classes else -math.inf
    rest = torch.full(where.shape, left, device=device)
    ids[where], head[where], rest[where] = law.ids, law.log_probs, law.rest
    return SparseLogits(ids, head, rest, classes, law.temperature)


def said(law: SparseLogits, *, dense: bool) -> ModelOutput:
    """An output of this law; without ``dense`` its logits take no memory and are NaN."""
    logits = law.dense() if dense else law.rest.new_tensor(math.nan).expand(*law.rest.shape, law.classes)
    return ModelOutput(logits, sparse=law)


def positions_of(task: Task, batch: Batch) -> Tensor:
    """Bool ``[B]`` or ``[B, T]``, true where an answer counts."""
    labels, mask = task.targets(batch)
    if mask is not None:
        return mask
    assert labels is not None
    return torch.ones(len(labels), dtype=torch.bool, device=labels.device)


def sample_checks(batch: Batch) -> Tensor:
    """A number per sample that tells texts apart, int64 ``[B]``; 0 for images, which the fingerprint answers for."""
    ids = batch.get("input_ids")
    if ids is None:
        return torch.zeros_like(batch["index"])
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    weights = (places * 6364136223846793005 + 1442695040888963407) | 1  # int64 arithmetic wraps around
    own = (ids + 1) * batch["attention_mask"] if "attention_mask" in batch else ids + 1  # padding depends on the others
    return (own * weights).sum(dim=1)


def check_samples(data: DataModule, who: str) -> None:
    """Refuse data whose training samples look different each time.

    Raises:
        ConfigError: naming the settings that make them so.
    """
    if data.views != 1:
        raise ConfigError(f"{who}: a cache holds one answer per sample, and data.views={data.views}; set data.views=1")
    if not data.fixed:
        raise ConfigError(
            f"{who}: data {data.name!r} draws its training samples anew each time, so an answer to one draw is wrong "
            "for the next; set data.augment=false"
        )
