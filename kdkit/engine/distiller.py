"""The one module that is wrapped, optimised and saved: networks that learn, their projectors, their losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdkit.data._base import Batch
from kdkit.models._network import Network
from kdkit.objective import Counts, Objective
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks._base import Task

__all__ = ["Distiller", "Learner"]


class Learner(nn.Module):
    """One network that learns, with everything that learns along with it.

    Args:
        network: the network.
        objective: what it minimises; learnable losses are inside.
        projectors: pair name -> module that maps this network's feature to the shape of the other's.
    """

    def __init__(
        self, network: Network, objective: Objective, projectors: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.projectors = nn.ModuleDict(dict(projectors or {}))

    def project(self, output: ModelOutput) -> ModelOutput:
        """The output as this learner's own objective sees it."""
        if not self.projectors:
            return output
        features = {
            name: self.projectors[name](value) if name in self.projectors else value
            for name, value in output.features.items()
        }
        raw = {name: output.features[name] for name in self.projectors if name in output.features}
        return replace(output, features=features, unprojected=raw)


class Distiller(nn.Module):
    """A student, and in online distillation the networks that learn beside it.

    Every learner sees the others' outputs as constants, so one backward pass gives each exactly the gradient of its
    own objective. A frozen teacher is not part of this module: its output is passed in.

    Args:
        task: turns batches into network inputs and targets.
        learners: ``"student"`` first; with ``"teacher"`` and maybe more beside it distillation is online.
        views: of each image in a batch, see :class:`~kdkit.outputs.StepOutputs`.
    """

    def __init__(self, task: Task, learners: Mapping[str, Learner], views: int = 1) -> None:
        super().__init__()
        self.task = task
        self.views = views
        self.learners = nn.ModuleDict(dict(learners))

    def items(self) -> list[tuple[str, Learner]]:
        """Name and learner, the student first."""
        return list(self.learners.items())  # type: ignore[arg-type]

    @property
    def student(self) -> Learner:
        """The learner that is evaluated and exported."""
        return self.learners["student"]  # type: ignore[return-value]

    @property
    def online(self) -> bool:
        """Whether the teacher learns too."""
        return len(self.learners) > 1

    def forward(
        self, batch: Batch, teacher: ModelOutput | None, totals: Counts | None, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One micro-batch.

        Args:
            batch: as the data set gives it.
            teacher: output of a frozen teacher, or ``None``.
            totals: global counts of the optimizer step, see :class:`~kdkit.objective.Objective`.
            progress: share of the training that lies behind.

        Returns:
            The sum of the learners' objectives and their terms; the terms of learners beside the student carry a
            prefix (``teacher/reverse_kl``).
        """
        labels, mask = self.task.targets(batch)
        outputs = {name: self.task.forward(learner.network, batch) for name, learner in self.items()}
        extra = self.task.extra(batch)
        alignment = self.task.alignment(batch)
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        shown = {name: output.detach() for name, output in outputs.items()} if self.online else {}
        for name, learner in self.items():
            peers = tuple(output for other, output in shown.items() if other != name)
            step = StepOutputs(
                learner.project(outputs[name]),
                peers[0] if peers else teacher,
                labels,
                mask,
                progress,
                extra,
                self.views,
                batch.get("weight"),
                peers,
                alignment,
            )
            value, own = learner.objective(step) if totals is None else learner.objective(step, totals)
            total = value if total is None else total + value
            prefix = "" if name == "student" else f"{name}/"
            terms.update({prefix + key: term for key, term in own.items()})
        assert total is not None
        return total, terms

    def non_finite_terms(self, terms: Mapping[str, Tensor]) -> list[str]:
        """Names of the terms that are NaN or infinite."""
        return [name for name, value in terms.items() if not bool(torch.isfinite(value).all())]
