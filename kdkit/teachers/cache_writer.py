"""Writing down what a teacher answers: best entries per position, in shards that can be made in any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit.data._base import Batch, DataModule
from kdkit.errors import NonFiniteError
from kdkit.outputs import SparseLogits
from kdkit.tasks._base import Task
from kdkit.teachers._base import Teacher
from kdkit.teachers._cache_files import Definition, Shard, id_dtype, read_shard, sound, write_shard
from kdkit.teachers.cached import normalised, positions_of, sample_checks, widened

__all__ = ["best_entries", "kept_entries", "missing_shards", "summary", "write_shards"]

ROWS = 1024
"""Positions whose probabilities over all classes exist at the same time."""


@torch.no_grad()
def best_entries(logits: Tensor, k: int, temperature: float, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    r"""The ``k`` most probable classes of each row, what the others have together, and what this loses.

    .. math:: p = \mathrm{softmax}(z / T), \qquad \tilde p_i = p_i \ (i \in \text{top } k), \quad
        \frac{1 - \sum_{\text{top } k} p}{C - k} \ \text{otherwise}

    Args:
        logits: ``[N, C]``.
        k: entries to keep, at most C.
        temperature: :math:`T`.
        dtype: in which the log-probabilities are kept; :math:`\tilde p` is what comes back after rounding.

    Returns:
        ``ids`` ``[N, k]`` (most probable first), ``log_probs`` ``[N, k]`` and ``rest`` ``[N]`` as they are stored,
        and float64 ``[2]``: the sums over the rows of the others' mass and of :math:`\mathrm{KL}(p \| \tilde p)`.
    """
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    head, ids = log_p.topk(k, dim=-1)
    others = log_p.shape[-1] - k
    rest = log_p.scatter(-1, ids, -math.inf).logsumexp(dim=-1) if others else torch.full_like(head[:, 0], -math.inf)
    stored = {"ids": ids.to(id_dtype(log_p.shape[-1])), "log_probs": head.to(dtype), "rest": rest.to(dtype)}
    kept, left = normalised(widened(stored["log_probs"]), widened(stored["rest"]))
    mass, p = rest.double().exp(), head.double().exp()
    divergence = -torch.special.entr(log_p.double().exp()).sum(dim=-1)
    divergence -= torch.where(p > 0, p * kept, 0.0).sum(dim=-1)
    if others:
        divergence -= torch.where(mass > 0, mass * (left.double() - math.log(others)), 0.0)
    return stored, torch.stack([mass.sum(), divergence.clamp(min=0.0).sum()])


def kept_entries(law: SparseLogits, k: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """The ``k`` most probable of the classes that a law tells apart, like :func:`best_entries`.

    Args:
        law: ``[N, K]`` with K at least ``k``, most probable first.
        k: entries to keep.
        dtype: in which the log-probabilities are kept.

    Returns:
        What is stored, and float64 ``[2]``: the sum of the others' mass, and NaN: what is lost of a law that is not
        known in full cannot be told.
    """
    head, ids = law.log_probs[:, :k], law.ids[:, :k]
    rest = torch.logaddexp(law.rest, law.log_probs[:, k:].logsumexp(dim=-1)) if law.ids.shape[1] > k else law.rest
    stored = {"ids": ids.to(id_dtype(law.classes)), "log_probs": head.to(dtype), "rest": rest.to(dtype)}
    return stored, torch.tensor([float(rest.double().exp().sum()), math.nan], dtype=torch.float64)


def _answers(teacher: Teacher, task: Task, batch: Batch, definition: Definition) -> tuple[list[Tensor], Tensor]:
    """Ids, log-probabilities, rests and positions per sample of a batch, on the host; and the two sums."""
    where = positions_of(task, batch)
    output = teacher(batch)
    counts = where.flatten(1).sum(dim=1) if where.ndim > 1 else where.long()
    if output.sparse is not None and not output.sparse.complete:
        law = output.sparse.at(definition.temperature)
        known = SparseLogits(law.ids[where], law.log_probs[where], law.rest[where], law.classes, law.temperature)
        stored, lost = kept_entries(known, definition.k, getattr(torch, definition.dtype))
        return [*(value.cpu() for value in stored.values()), counts.cpu()], lost
    logits = output.logits[where]
    if not bool(torch.isfinite(logits.max(dim=-1).values).all()):
        raise NonFiniteError(
            f"the teacher answers NaN or infinities to samples {batch['index'][:4].tolist()} and further ones; check "
            "its weights, or its precision"
        )
    parts, sums = [], torch.zeros(2, dtype=torch.float64)
    for rows in logits.split(ROWS):
        stored, lost = best_entries(rows, definition.k, definition.temperature, getattr(torch, definition.dtype))
        parts.append([value.cpu() for value in stored.values()])
        sums += lost.cpu()
    if not parts:
        return [], sums
    return [*(torch.cat(column) for column in zip(*parts, strict=True)), counts.cpu()], sums


def _shard(
    teacher: Teacher, task: Task, batches: Iterator[Batch], definition: Definition
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors and sums of one shard."""
    columns: list[list[Tensor]] = []
    checks, sums = [], torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        answers, lost = _answers(teacher, task, batch, definition)
        checks.append(sample_checks(batch).cpu())
        if answers:
            columns.append(answers)
        else:
            columns.append(_nothing(len(checks[-1]), definition))
        sums += lost
    ids, log_probs, rest, counts = (torch.cat(column) for column in zip(*columns, strict=True))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    tensors = {"ids": ids, "log_probs": log_probs, "rest": rest, "offsets": offsets, "check": torch.cat(checks)}
    return tensors, {"rest": float(sums[0]), "kl": float(sums[1])}


def _nothing(samples: int, definition: Definition) -> list[Tensor]:
    """The answers to samples none of whose positions counts."""
    dtype = getattr(torch, definition.dtype)
    ids = torch.empty(0, definition.k, dtype=id_dtype(definition.classes))
    rest = torch.empty(0, dtype=dtype)
    return [ids, torch.empty(0, definition.k, dtype=dtype), rest, torch.zeros(samples, dtype=torch.long)]


def missing_shards(folder: Path, definition: Definition) -> list[int]:
    """Numbers of the shards that are not there, or not as they were written."""
    missing = []
    for number in range(definition.shards):
        shard = read_shard(folder, number)
        if shard is None or not sound(shard):
            missing.append(number)
    return missing


def write_shards(
    folder: Path,
    definition: Definition,
    numbers: list[int],
    teacher: Teacher,
    task: Task,
    data: DataModule,
    *,
    batch_size: int,
    device: torch.device,
    finished: Callable[[int], None],
) -> None:
    """Make these shards, one after the other; each is on disk before the next begins.

    Args:
        folder: of the cache.
        definition: of the cache; ``batch_size`` divides its ``shard_samples``.
        numbers: of the shards.
        teacher: answers.
        task: says where answers count.
        data: asks.
        batch_size: samples per question.
        device: of the batches.
        finished: told the number of each shard.
    """
    steps = definition.shard_samples // batch_size
    split: Any = definition.split
    for number in numbers:
        batches = data.batches(split, batch_size, train=False, start=number * steps, device=device)
        write_shard(folder, number, *_shard(teacher, task, islice(batches, steps), definition))
        finished(number)


def summary(folder: Path, definition: Definition) -> dict[str, Any]:
    """Size and loss of a finished cache.

    Returns:
        ``positions``; ``bytes`` and ``bytes_per_position`` on disk; ``rest``, the mean mass of the entries that were
        not kept; ``kl``, the mean KL divergence in nats from the teacher's law to what a reader gets back, ``None``
        where that law was not known in full.
    """
    shards: list[Shard] = []
    for number in range(definition.shards):
        shard = read_shard(folder, number)
        assert shard is not None
        shards.append(shard)
    positions, size = sum(shard.positions for shard in shards), sum(shard.bytes for shard in shards)
    sums = {name: math.fsum(shard.sums[name] for shard in shards) for name in ("rest", "kl")}
    count = max(positions, 1)
    means = {name: None if math.isnan(value) else value / count for name, value in sums.items()}
    return {"positions": positions, "bytes": size, "bytes_per_position": size / count, **means}
