"""Several teachers, each for the data sources that it knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kdkit._files import sha256_json
from kdkit.data._base import Batch
from kdkit.errors import ConfigError, InputError, did_you_mean
from kdkit.outputs import ModelOutput
from kdkit.tasks._base import Task
from kdkit.teachers._base import Teacher
from kdkit.teachers._routes import Routes, check_routes, shares_of, source_names, sources_of
from kdkit.teachers.cached import positions_of

__all__ = ["RoutedTeacher"]


class RoutedTeacher(Teacher):
    r"""Teachers by data source: each sample, or token of a text, is answered by those that its source is routed to.

    .. math:: p(x) = \sum_n w_{n}(s(x))\, p_n(x), \qquad \sum_n w_n(s) = 1

    with :math:`s(x)` the source of a text's document, or the class of an image. ``combine="probs"`` gives
    :math:`\log p`, ``"logits"`` gives :math:`\sum_n w_n z_n`, whose softmax is the normalised geometric mean. Where one
    teacher alone has a share, its logits stand as they are. A teacher is only run on rows in which some position that
    counts is routed to it.

    Args:
        teachers: by name.
        routes: pattern of source names, as in a shell -> a teacher, or teacher -> share; the first that fits. Shares of
            a route are divided by their sum. ``"*"`` also takes what has no source.
        task: of the run.
        combine: "probs" or "logits".

    Raises:
        ConfigError: for routes to nowhere, patterns that fit no source, and sources without a route.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        routes: Routes,
        task: Task,
        *,
        combine: Literal["probs", "logits"] = "probs",
    ) -> None:
        if combine not in ("probs", "logits"):
            hint = did_you_mean(combine, ["probs", "logits"])
            raise ConfigError(f"teacher.routed.combine must be 'probs' or 'logits', got {combine!r}{hint}")
        check_routes(routes, list(teachers))
        self.teachers, self.routes, self.task, self.combine = dict(teachers), dict(routes), task, combine
        self.names = source_names(task.spec)
        self._shares = shares_of(routes, list(teachers), self.names)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ModelOutput:
        """Combined logits.

        Raises:
            InputError: for samples without a source where no route takes them.
            ConfigError: for teachers with unequal numbers of classes.
        """
        where = positions_of(self.task, batch)
        sources = sources_of(batch, self.task.spec)
        shares = self._shares.to(sources.device)[sources]  # -1 is the last row
        shares = shares * where.unsqueeze(-1)
        self._all_served(shares, where)
        total: Tensor | None = None
        for number, (name, teacher) in enumerate(self.teachers.items()):
            share = shares[..., number]
            rows = (share > 0).flatten(1).any(dim=1) if share.ndim > 1 else share > 0
            if not bool(rows.any()):
                continue
            logits = teacher({key: value[rows] for key, value in batch.items()}).logits.float()
            total = self._start(logits, share) if total is None else total
            if logits.shape[-1] != total.shape[-1]:
                raise ConfigError(
                    f"teachers of different sources must have equally many classes, got {total.shape[-1]} and "
                    f"{logits.shape[-1]} (teacher.routed.teachers.{name}); leave that one out"
                )
            total[rows] = self._added(total[rows], logits, share[rows].unsqueeze(-1))
        if total is None:
            total = self._start(self._nothing(batch), where)
        return ModelOutput(total.masked_fill_(~where.unsqueeze(-1), 0.0))

    def _all_served(self, shares: Tensor, where: Tensor) -> None:
        lost = where & (shares.sum(dim=-1) == 0)
        if bool(lost.any()):
            raise InputError(
                f"{int(lost.sum())} positions of this batch have no source, and no route takes them; add '*' to "
                "teacher.routed.routes"
            )

    def _start(self, logits: Tensor, like: Tensor) -> Tensor:
        """What the teachers' answers are added to, for the whole batch."""
        nothing = 0.0 if self.combine == "logits" else -math.inf
        return logits.new_full((*like.shape, logits.shape[-1]), nothing)

    def _nothing(self, batch: Batch) -> Tensor:
        """Logits of a batch in which no position counts."""
        first = next(iter(self.teachers.values()))
        return first({key: value[:1] for key, value in batch.items()}).logits.float()

    def _added(self, total: Tensor, logits: Tensor, share: Tensor) -> Tensor:
        """``total`` with one more teacher; log-probabilities of a sum, but the logits themselves of one alone."""
        if self.combine == "logits":
            return torch.where(share > 0, total + share * logits, total)
        mixed = torch.logaddexp(total, logits.log_softmax(dim=-1) + share.log())
        return torch.where(share == 1, logits, torch.where(share > 0, mixed, total))

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the teachers and the routes, order included."""
        members = {name: teacher.identity for name, teacher in self.teachers.items()}
        return sha256_json([list(members.items()), list(self.routes.items()), self.combine, list(self.names)])

    def tap(self, layers: Mapping[str, str]) -> None:
        """Nothing can be tapped.

        Raises:
            ConfigError: if layers are asked for: the features of several teachers have nothing in common.
        """
        if layers:
            raise ConfigError(
                f"features ({', '.join(layers)}) can not be taken from teachers by source; use losses on logits, or "
                "one teacher"
            )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> RoutedTeacher:
        """Move all teachers."""
        for teacher in self.teachers.values():
            teacher.to(device, dtype)
        return self

    def compile(self, **options: object) -> None:
        """Compile all teachers."""
        for teacher in self.teachers.values():
            teacher.compile(**options)
