"""Training on texts that the student or the teacher writes: on-policy distillation and sequence-level distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kdkit.data._base import Batch
from kdkit.data._order import generator
from kdkit.errors import ConfigError, InputError, did_you_mean
from kdkit.models._network import Network
from kdkit.outputs import IGNORE_INDEX
from kdkit.schedules import Schedule, as_schedule
from kdkit.tasks._base import Task
from kdkit.tasks._generate import Sampling, complete, ends_of
from kdkit.tasks._strategy import Strategy
from kdkit.tasks.causal_lm import CausalLM

__all__ = ["WrittenText"]

_SIMILAR = 0.75
"""Least share that the longest prompt of a group leaves of what the shortest one leaves of a row."""


class WrittenText(Strategy):
    r"""Replaces the text after each prompt by what a network writes, in a share of the micro-batches.

    .. math:: L(\theta) = (1 - \lambda)\, \mathbb{E}_{(x, y) \sim \text{data}} [D(y)]
        + \lambda\, \mathbb{E}_{x \sim \text{data},\; y \sim q(\cdot | x)} [D(y)]

    with :math:`q` the student (on-policy, as in GKD) or the teacher (sequence-level distillation). No gradient flows
    through the writing. What counts are the tokens that were really written, the one that ends the text included.
    After its own words the student has no labels, so that cross-entropy does not confirm them; the teacher's words
    are labels.

    A prompt is what stands before the first label of a row (an instruction); a row that is all text gives its first
    ``prompt_tokens`` tokens. Of a row that holds several documents the first is used.

    Whether a micro-batch is replaced, and what is written, follow from the seed, the step and the micro-batch, so that
    a run that was stopped goes on as it would have; all ranks replace the same micro-batches.

    Args:
        task: ``causal_lm``.
        writer: "student" or "teacher".
        share: :math:`\lambda` in [0, 1], or a schedule of it.
        prompt_tokens: length of the prompt where the data mark none.
        max_new_tokens: at most; ``None`` fills the row, or at least three quarters of what the prompt leaves of it
            where longer prompts are written in the same batch.
        temperature: of the softmax that is drawn from; 0 takes the most probable token.
        top_p: draw from the smallest set of tokens with at least this mass.
        top_k: draw from this many best tokens; 0 draws from all.

    Raises:
        ConfigError: for another task or writer.
        InputError: for numbers out of range.

    Source: Agarwal et al. 2024 (GKD), arXiv:2306.13649, algorithm 1; Kim and Rush 2016, arXiv:1606.07947. GKD draws
        per batch; so does this, per micro-batch, but with the same draw on every rank.
    """

    def __init__(
        self,
        task: Task,
        *,
        writer: Literal["student", "teacher"] = "student",
        share: float | Schedule = 0.5,
        prompt_tokens: int = 32,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> None:
        if not isinstance(task, CausalLM):
            raise ConfigError(f"strategy writes texts, and task {task.name} has none; use task=causal_lm")
        if writer not in ("student", "teacher"):
            hint = did_you_mean(writer, ["student", "teacher"])
            raise ConfigError(f"strategy.writer must be student or teacher, got {writer!r}{hint}")
        _whole("prompt_tokens", prompt_tokens, 1)
        _whole("top_k", top_k, 0)
        if max_new_tokens is not None:
            _whole("max_new_tokens", max_new_tokens, 1)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not _may_soften(temperature):
            raise InputError(f"strategy.temperature must be 0, or a number from 0.01 to 100, got {temperature!r}")
        if prompt_tokens >= task.spec.context:
            raise InputError(
                f"strategy.prompt_tokens must be less than data.context={task.spec.context}, got {prompt_tokens}"
            )
        if not 0 < top_p <= 1:
            raise InputError(f"strategy.top_p must lie above 0 and be at most 1, got {top_p!r}")
        self.share = as_schedule(share)
        for step in range(21):
            if not 0.0 <= self.share(step / 20) <= 1.0:
                raise InputError(f"strategy.share must lie in [0, 1], got {self.share(step / 20)}")
        self.task, self.writer, self.prompt_tokens, self.max_new_tokens = task, writer, prompt_tokens, max_new_tokens
        self.needs_teacher = writer == "teacher"
        self.sampling = Sampling(temperature, top_p, top_k)
        self._written = {"written": 0.0, "batches": 0.0, "written_tokens": 0.0}

    def check(self, student: Network, teacher: Network | None) -> None:
        """Refuse writers that cannot write."""
        if self.writer == "teacher" and teacher is None:
            raise ConfigError(
                "strategy.writer=teacher needs one teacher in memory that does not learn; choose it with teacher=…, or "
                "set strategy.writer=student"
            )
        writer = student if self.writer == "student" or teacher is None else teacher
        ends_of(writer, self.task.spec.eos_token_id)

    def __call__(
        self,
        batch: Batch,
        student: Network,
        teacher: Network | None,
        *,
        key: tuple[int, ...],
        rank: int,
        progress: float,
    ) -> Batch:
        """The batch, or what was written in its place."""
        self._written["batches"] += 1
        if float(torch.rand((), generator=generator("share", *key))) >= self.share(progress):
            return batch
        writer = student if self.writer == "student" or teacher is None else teacher
        prompts = self._prompts(batch)
        written = self._write(writer, prompts, batch["input_ids"].shape[1], (*key, rank))
        self._written["written"] += 1
        self._written["written_tokens"] += sum(map(len, written))
        return self._rows(batch, prompts, written)

    def _write(self, writer: Network, prompts: list[Tensor], length: int, key: tuple[int, ...]) -> list[Tensor]:
        """A text for each prompt. Prompts of similar length are written together, so that a long one does not leave
        little room for all."""
        spec, groups = self.task.spec, list[list[int]]()
        for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
            if groups and length - len(prompts[row]) >= _SIMILAR * (length - len(prompts[groups[-1][0]])):
                groups[-1].append(row)
            else:
                groups.append([row])
        texts: dict[int, Tensor] = {}
        for number, rows in enumerate(groups):
            room = length - len(prompts[rows[-1]])
            written = complete(
                writer,
                [prompts[row] for row in rows],
                self.sampling,
                max_new_tokens=room if self.max_new_tokens is None else min(room, self.max_new_tokens),
                pad_token_id=spec.pad_token_id,
                ends=ends_of(writer, spec.eos_token_id),
                seed=generator("write", *key, number).initial_seed() % 2**63,
            )
            texts |= dict(zip(rows, written, strict=True))
        return [texts[row] for row in range(len(prompts))]

    def record(self) -> Mapping[str, float]:
        """``written``: share of the micro-batches that were replaced; ``written_tokens``: how many on this rank."""
        counted, self._written = self._written, dict.fromkeys(self._written, 0.0)
        share = counted["written"] / counted["batches"] if counted["batches"] else 0.0
        return {"written": share, "written_tokens": counted["written_tokens"]}

    def _prompts(self, batch: Batch) -> list[Tensor]:
        """Ids of the prompt of each row, with room for at least one token after it."""
        ids, documents, labels = batch["input_ids"], batch["document_ids"], batch["labels"]
        first = (documents == documents[:, :1]).cumprod(dim=1)
        lengths = first.sum(dim=1).tolist()
        learnt = (labels != IGNORE_INDEX) & first.bool()
        starts = torch.where(learnt.any(dim=1), learnt.int().argmax(dim=1), 0).tolist()
        prompts = []
        for row, length, start in zip(ids, lengths, starts, strict=True):
            # a piece of a longer document does not learn its first token either: that is no prompt
            end = start if start > 1 else max(min(self.prompt_tokens, length - 1), 1)
            prompts.append(row[: min(end, ids.shape[1] - 1)])
        return prompts

    def _rows(self, batch: Batch, prompts: list[Tensor], written: list[Tensor]) -> Batch:
        """Rows of the batch's length that hold prompt and text."""
        ids = torch.full_like(batch["input_ids"], self.task.spec.pad_token_id)
        labels, documents = torch.full_like(ids, IGNORE_INDEX), torch.zeros_like(ids)
        counts = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, text) in enumerate(zip(prompts, written, strict=True)):
            begin, end = len(prompt), len(prompt) + len(text)
            ids[row, :begin], ids[row, begin:end] = prompt, text
            documents[row, :end], counts[row, begin:end] = 1, True
            if self.writer == "teacher":
                labels[row, begin:end] = text
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape) * documents
        nothing = torch.zeros_like(ids)  # how many bytes the tokens stand for plays no part in training
        new = {"input_ids": ids, "labels": labels, "document_ids": documents, "position_ids": places}
        if "source" in batch:  # of the prompt
            new["source"] = batch["source"][:, :1].expand(ids.shape)
        return {**batch, **new, "num_bytes": nothing, "counts": counts}


def _may_soften(temperature: float) -> bool:
    return temperature == 0 or 0.01 <= temperature <= 100


def _whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"strategy.{name} must be a whole number of at least {least}, got {value!r}")
