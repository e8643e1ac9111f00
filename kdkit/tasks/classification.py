"""Image classification: one label per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.data._base import Batch, ImageSpec, LabelledTextSpec, Spec
from kdkit.errors import ConfigError, DataError
from kdkit.models._network import Network, VisionNetwork
from kdkit.models._normalization import resolve_normalization
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks._base import Metrics, Task
from kdkit.tasks._calibration import calibration_bins, calibration_error, equal_mass_bins
from kdkit.tasks._labels import check_labels

__all__ = ["Classification", "ClassificationMetrics"]

_ADVICE = "number the classes from 0, or correct the number of classes"


class Classification(Task):
    """Images with one class each.

    Args:
        spec: of an image data set.

    Raises:
        ConfigError: if the data are not images.
    """

    name = "classification"
    primary = "accuracy"
    higher_is_better = True
    unit = "images"
    spec: ImageSpec

    def __init__(self, spec: Spec) -> None:
        if not isinstance(spec, ImageSpec):
            other = "sequence_classification" if isinstance(spec, LabelledTextSpec) else "causal_lm"
            raise ConfigError(f"task classification needs images, and these data are {spec.kind}; use task={other}")
        super().__init__(spec)

    def wrap(
        self,
        module: nn.Module,
        *,
        normalization: str | Mapping[str, Sequence[float]] | None = None,
        input_size: int | None = None,
        name: str = "network",
    ) -> VisionNetwork:
        """Put an image classifier into its wrapper.

        Args:
            module: called with normalised images, returns logits.
            normalization: see :func:`~kdkit.models.resolve_normalization`.
            input_size: side in pixels that images are resized to, or ``None`` for no resizing.
            name: how reports call it.
        """
        if input_size is not None and input_size < 1:
            raise ConfigError(f"input_size must be at least 1 pixel, got {input_size}")
        mean, std = resolve_normalization(module, self.spec, normalization)
        return VisionNetwork(module, mean=mean, std=std, input_size=input_size, name=name)

    def inputs(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """The images; the network gives logits ``[B, C]``."""
        return {"image": batch["image"]}

    def targets(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Labels ``[B]`` (or soft ``[B, C]``), and no mask: every image counts."""
        return batch.get("label"), batch.get("mask")

    def metrics(self) -> ClassificationMetrics:
        """A fresh collector."""
        return ClassificationMetrics()

    def example(self, batch: Batch) -> Batch:
        """The first image."""
        return {name: value[:1] for name, value in batch.items()}

    def check_outputs(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> None:
        """Refuse class counts that do not match each other or the data, and labels out of range."""
        size = batch["image"].shape[0]
        for who, output in (("student", student), ("teacher", teacher)):
            if output is None:
                continue
            if output.logits.dim() != 2 or output.logits.shape[0] != size:
                raise ConfigError(
                    f"the {who} must give logits [B, C] for classification, got {list(output.logits.shape)} "
                    f"for {size} images; use a model with a classifier"
                )
        classes = student.logits.shape[1]
        if teacher is not None and teacher.logits.shape[1] != classes:
            raise ConfigError(
                f"the student has {classes} classes and the teacher {teacher.logits.shape[1]}; they must be the same "
                "classes, so set num_classes of both to that of the data"
            )
        if classes != self.spec.num_classes:
            raise ConfigError(
                f"the networks have {classes} classes and the data {self.spec.num_classes}; "
                "set model.num_classes to ${spec.num_classes}"
            )
        if batch.get("label") is not None:
            check_labels(batch["label"], classes, _ADVICE)


class ClassificationMetrics(Metrics):
    """Quality and calibration of a classifier, from a few numbers per image.

    ``accuracy``: share of images whose largest logit is the label. ``top5``: share whose label is among the five
    largest (only with more than five classes). ``nll``: mean of ``-log p(label)`` in nats. ``brier``: mean over
    images of ``sum_c (p_c - y_c)^2``, the multi-class sum form, in [0, 2]. ``ece``: top-label expected calibration
    error over 15 equally wide bins ``(lo, hi]``. ``adaptive_ece``: the same over 15 bins of equal mass.
    ``agreement``: share of images on which the network and its teacher choose the same class. ``kl_to_teacher``:
    mean KL(teacher || network) in nats. Images without a label enter the last two only. Soft labels: the label is
    their largest entry, NLL and Brier use all entries.
    """

    LABELLED = ("confidence", "correct", "top5", "nll", "brier")
    PAIRED = ("agreement", "kl_to_teacher")

    WHAT = "images"

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {"labelled": [], "paired": []}
        self._classes = 0

    @torch.no_grad()
    def update(self, out: StepOutputs, batch: Batch) -> None:
        """Add one batch; see the class for what is measured."""
        logits = out.student.logits.detach().float()
        self._classes = logits.shape[1]
        positions, labelled = out.positions(), out.labelled()
        if out.labels is not None:
            check_labels(out.labels, self._classes, _ADVICE)
            rows = _labelled_rows(logits[labelled], out.labels[labelled])
            self._parts["labelled"].append(rows.cpu())
        if out.teacher is not None:
            teacher = out.teacher.logits.detach().float()
            rows = _paired_rows(logits[positions], teacher[positions])
            self._parts["paired"].append(rows.cpu())

    def state(self) -> dict[str, Any]:
        """One row of numbers per image, on the CPU."""
        return {"classes": self._classes, **{name: _joined(parts) for name, parts in self._parts.items()}}

    def merge(self, states: list[dict[str, Any]]) -> None:
        """Put the rows of all ranks one after the other."""
        self._classes = max(state["classes"] for state in states)
        self._parts = {name: [s[name] for s in states if s[name] is not None] for name in self._parts}

    def compute(self) -> dict[str, float]:
        """All metrics.

        Raises:
            DataError: if no image with a label was seen.
        """
        rows = _joined(self._parts["labelled"])
        if rows is None or rows.shape[1] == 0:
            raise DataError(
                f"an evaluation needs {self.WHAT} with labels, this split has none; evaluate on another split"
            )
        values = dict(zip(self.LABELLED, rows.double()))
        metrics = {"accuracy": float(values["correct"].mean())}
        if self._classes > 5:
            metrics["top5"] = float(values["top5"].mean())
        metrics |= {"nll": float(values["nll"].mean()), "brier": float(values["brier"].mean())}
        metrics["ece"] = calibration_error(calibration_bins(values["confidence"], values["correct"]))
        metrics["adaptive_ece"] = calibration_error(equal_mass_bins(values["confidence"], values["correct"]))
        paired = _joined(self._parts["paired"])
        if paired is not None and paired.shape[1]:
            metrics |= {name: float(row.double().mean()) for name, row in zip(self.PAIRED, paired)}
        return metrics

    def extras(self) -> dict[str, Any]:
        """``reliability``: mean confidence, accuracy and number of images in each of 15 equally wide bins."""
        rows = _joined(self._parts["labelled"])
        if rows is None or rows.shape[1] == 0:
            return {}
        return {"reliability": calibration_bins(rows[0].double(), rows[1].double())}


def _joined(parts: list[Tensor]) -> Tensor | None:
    return torch.cat(parts, 1) if parts else None


def _labelled_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """``[5, N]``: confidence, correct, among the top five, negative log-likelihood, Brier score."""
    soft = labels.float() if labels.is_floating_point() else F.one_hot(labels, logits.shape[1]).float()
    label = labels.argmax(1) if labels.is_floating_point() else labels
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    confidence, choice = p.max(1)
    top = logits.topk(min(5, logits.shape[1]), 1).indices
    # -inf logits (classes that are switched off) must not turn 0 * -inf into NaN
    nll = -torch.where(soft > 0, soft * log_p, torch.zeros_like(log_p)).sum(1)
    among = (top == label[:, None]).any(1)
    return torch.stack([confidence, (choice == label).float(), among.float(), nll, (p - soft).square().sum(1)])


def _paired_rows(logits: Tensor, teacher: Tensor) -> Tensor:
    """``[2, N]``: same choice, KL(teacher || network)."""
    log_p, log_q = logits.log_softmax(1), teacher.log_softmax(1)
    q = log_q.exp()
    kl = torch.where(q > 0, q * (log_q - log_p), torch.zeros_like(q)).sum(1)
    return torch.stack([(logits.argmax(1) == teacher.argmax(1)).float(), kl])
