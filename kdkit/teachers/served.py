"""A teacher behind a server: its best entries per token, out of an OpenAI-compatible completions API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdkit._files import sha256_json
from kdkit.data._base import Batch, TextSpec
from kdkit.errors import ConfigError, ServerError, did_you_mean
from kdkit.outputs import ModelOutput, SparseLogits
from kdkit.tasks._base import Task
from kdkit.teachers._base import Teacher
from kdkit.teachers._endpoint import Endpoint
from kdkit.teachers._prompt_answers import FORMS, Best, Form, question, read_answer
from kdkit.teachers.cached import normalised, placed, positions_of, said

__all__ = ["ServedTeacher"]


class Prompt(NamedTuple):
    """A document of a batch: its row, the column of its first token, and its token ids."""

    row: int
    column: int
    ids: list[int]


class ServedTeacher(Teacher):
    r"""Asks a server for the log-probabilities of the tokens of a prompt, document by document.

    A row is cut into its documents, and each is a prompt of its own, so that it is seen as the student sees it: from
    its own first token on. Token ids are sent, not text. What comes back are, for each token but the first, the ``k``
    most probable ones given those before it, as :class:`~kdkit.outputs.SparseLogits` at temperature 1 with the rest

    .. math:: \log\Big(1 - \sum_{j=1}^{k} p_{c_j}\Big)

    Every answer is held against what was asked: token count and ids, number of entries, values that are logarithms of
    probabilities, ids inside the vocabulary. Documents of which no position counts are not asked about.

    Args:
        task: ``causal_lm``.
        url: where the API begins, as in ``http://localhost:8000/v1``.
        model: name that the server lists under ``/models``.
        vocab_size: of the student.
        k: entries per position.
        form: "prompt_logprobs", vLLM's parameter of that name, or "echo", with ``echo=true`` and ``logprobs=k``.
        timeout: seconds without a sign of life after which a question counts as failed.
        retries: how often a question is repeated that failed for a reason that may pass.
        wait: seconds before the first repetition; doubles from one to the next.
        concurrency: questions under way at the same time, on each process.
        key_variable: environment variable that holds the API key; ``None`` for none.

    Raises:
        ConfigError: for another task, or options out of range.
        ServerError: if the server is out of reach, or has no such model, or takes shorter prompts than a row.

    Source:
        The fields are those of vLLM's ``/v1/completions``; see the documentation for other servers.
    """

    live = False
    may_fail = True

    def __init__(
        self,
        task: Task,
        *,
        url: str,
        model: str,
        vocab_size: int,
        k: int = 20,
        form: Form = "prompt_logprobs",
        timeout: float = 60.0,
        retries: int = 5,
        wait: float = 0.5,
        concurrency: int = 8,
        key_variable: str | None = None,
    ) -> None:
        if not isinstance(task.spec, TextSpec):
            raise ConfigError(f"teacher=served answers about text, and the data of task {task.name} are images")
        if form not in FORMS:
            raise ConfigError(
                f"teacher.served.form must be prompt_logprobs or echo, got {form!r}{did_you_mean(form, FORMS)}"
            )
        _whole("vocab_size", vocab_size, 2)
        _whole("k", k, 1, vocab_size)
        _whole("retries", retries, 0)
        _whole("concurrency", concurrency, 1)
        _positive("timeout", timeout)
        _positive("wait", wait)
        self.task, self.name, self.classes, self.k, self.form = task, str(model), vocab_size, k, form
        self.temperature, self.dense = 1.0, True
        self.endpoint = Endpoint(
            url, timeout=timeout, retries=retries, wait=wait, concurrency=concurrency, key_variable=key_variable
        )
        self._who = f"the server at {self.endpoint.url}"
        self._check_model(task.spec.context)

    def _check_model(self, context: int) -> None:
        """Refuse a model that the server does not list, or that takes shorter prompts than the data have."""
        answer = self.endpoint.get("/models")
        listed = answer.get("data") if isinstance(answer, Mapping) else None
        cards = [card for card in listed or [] if isinstance(card, Mapping)] if isinstance(listed, list) else []
        names = [str(card.get("id")) for card in cards]
        if self.name not in names:
            raise ServerError(
                f"{self._who} has no model {self.name!r}{did_you_mean(self.name, names)} (teacher.served.model)"
            )
        most = cards[names.index(self.name)].get("max_model_len")
        if isinstance(most, int) and most < context + 1:
            raise ServerError(
                f"{self._who} takes {most} tokens, and a row of the data has {context} and one more is generated; "
                "lower data.context, or let it take more (vLLM: --max-model-len)"
            )

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the name of the model and what is asked for; a server tells no more about its weights."""
        return sha256_json({"served": self.name, "classes": self.classes, "k": self.k})

    @property
    def origin(self) -> str:
        """The server and what it is asked for."""
        return f"{self.k} of {self.classes:,} entries per token from {self._who}"

    def tap(self, layers: Mapping[str, str]) -> None:
        """Nothing can be tapped.

        Raises:
            ConfigError: if layers are asked for.
        """
        if layers:
            raise ConfigError(
                f"features ({', '.join(layers)}) are not in the answers of a server; use losses on logits, or the "
                "teacher itself in place of teacher=served"
            )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ModelOutput:
        """The answers to these rows.

        Raises:
            ServerError: if the server does not answer, or answers what it should not.
        """
        where = positions_of(self.task, batch)
        prompts = list(_prompts(batch, where))
        bodies = [question(self.name, prompt.ids, self.k, self.form) for prompt in prompts]
        answers = self.endpoint.post("/completions", bodies)
        ids = np.zeros((*where.shape, self.k), dtype=np.int64)
        log_probs = np.full(ids.shape, -np.log(self.classes))
        for prompt, answer in zip(prompts, answers, strict=True):
            best = self._read(answer, prompt)
            here = slice(prompt.column, prompt.column + len(prompt.ids) - 1)
            ids[prompt.row, here], log_probs[prompt.row, here] = best
        counted = where.cpu().numpy()
        return said(placed(self._law(Best(ids[counted], log_probs[counted]), where.device), where), dense=self.dense)

    def _read(self, answer: Any, prompt: Prompt) -> Best:
        return read_answer(answer, prompt.ids, self.k, self.classes, self.form, self._who)

    def _law(self, best: Best, device: torch.device) -> SparseLogits:
        """Best entries ``[N, k]`` with what is left for the others."""
        with np.errstate(divide="ignore"):
            left = np.log(np.clip(1.0 - np.exp(best.log_probs).sum(axis=-1), 0.0, None))
        if self.k == self.classes:
            left = np.full_like(left, -np.inf)
        head, rest = normalised(torch.from_numpy(best.log_probs), torch.from_numpy(left))
        ids = torch.from_numpy(best.ids).to(device)
        return SparseLogits(ids, head.float().to(device), rest.float().to(device), self.classes, self.temperature)


def _prompts(batch: Batch, where: Tensor) -> Iterator[Prompt]:
    """The documents of a batch that hold a position that counts."""
    ids, documents, counts = batch["input_ids"].cpu(), batch["document_ids"].cpu(), where.cpu()
    for row in range(len(ids)):
        begins = (documents[row, 1:] != documents[row, :-1]).nonzero().flatten() + 1
        edges = [0, *begins.tolist(), ids.shape[1]]
        for begin, end in pairwise(edges):
            if documents[row, begin] != 0 and bool(counts[row, begin : end - 1].any()):
                yield Prompt(row, begin, ids[row, begin:end].tolist())


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"teacher.served.{name} must be a whole number of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise ConfigError(f"teacher.served.{name} must be at most the {most} entries of the vocabulary, got {value}")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"teacher.served.{name} must be a positive number of seconds, got {value!r}")
