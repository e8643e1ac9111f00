"""Classification of texts: one label per text, or per pair of texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data._base import Batch, LabelledTextSpec, Spec
from kdkit.errors import ConfigError
from kdkit.models._network import Network
from kdkit.models._texts import TextNetwork
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks._base import Task
from kdkit.tasks._labels import check_labels
from kdkit.tasks.classification import ClassificationMetrics

__all__ = ["SequenceClassification", "SequenceClassificationMetrics"]

_ADVICE = "number the classes from 0, or correct the number of classes"
_MEASURES = ("accuracy", "f1", "matthews")


class SequenceClassification(Task):
    """Texts, or pairs of texts, with one class each: logits ``[B, C]``.

    Which metric says what network is better is told by the data (``spec.measure``): accuracy, or what GLUE asks for,
    F1 for MRPC and QQP and Matthews' correlation for CoLA. Padding is masked in attention and left out of the losses of
    tokens; other losses of features see it, so give them vectors (``penultimate``). Regression (STS-B) is no
    classification and not among kdkit's tasks.

    Args:
        spec: of a set of labelled texts.

    Raises:
        ConfigError: if the data are no labelled texts, or their measure does not fit.
    """

    name = "sequence_classification"
    primary = "accuracy"
    higher_is_better = True
    unit = "texts"
    spec: LabelledTextSpec

    def __init__(self, spec: Spec) -> None:
        if not isinstance(spec, LabelledTextSpec):
            other = "classification" if spec.kind == "image" else "causal_lm"
            raise ConfigError(
                f"task sequence_classification needs texts with labels, and these data are {spec.kind}s; use "
                f"task={other}".replace("texts;", "text;")
            )
        if spec.measure not in _MEASURES or (spec.measure == "f1" and spec.num_classes != 2):
            raise ConfigError(
                f"the measure of the data must be accuracy, matthews or, for two classes, f1, got {spec.measure!r} for "
                f"{spec.num_classes} classes; correct measure"
            )
        super().__init__(spec)
        self.primary = spec.measure

    def wrap(
        self, module: nn.Module, *, normalization: Any = None, input_size: int | None = None, name: str = "network"
    ) -> TextNetwork:
        """Put a text classifier into its wrapper.

        Args:
            module: a sequence classifier of transformers, or a module that takes ``input_ids``, ``attention_mask``
                and maybe ``token_type_ids``.
            normalization: must be ``None``; images only.
            input_size: must be ``None``; images only.
            name: how reports call it.

        Raises:
            ConfigError: if the model is too small for the vocabulary or the longest text of the data.
        """
        if normalization is not None or input_size is not None:
            raise ConfigError(
                f"normalization and input_size are for images, got {normalization!r} and {input_size!r} "
                "for a text classifier; leave both null"
            )
        config = getattr(module, "config", None)
        vocabulary = getattr(config, "vocab_size", None)
        if vocabulary is not None and vocabulary < self.spec.vocab_size:
            raise ConfigError(
                f"the {name} knows {vocabulary} tokens and the data {self.spec.vocab_size}; "
                "set model.vocab_size to ${spec.vocab_size}, or data.tokenizer to the tokenizer of that model"
            )
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and positions < self.spec.context:
            raise ConfigError(
                f"the {name} takes {positions} positions and the longest text of the data may have "
                f"{self.spec.context} tokens; raise model.max_position_embeddings or lower data.context"
            )
        return TextNetwork(module, name=name)

    def inputs(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """Ids ``[B, T]``, the mask of what is no padding, and for networks that tell them apart the kinds of tokens."""
        names = ["input_ids", "attention_mask"]
        if isinstance(network, TextNetwork) and network.kinds:
            names.append("token_type_ids")
        return {name: batch[name] for name in names}

    def targets(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Labels ``[B]``, and no mask: every text counts."""
        return batch.get("label"), batch.get("mask")

    def extra(self, batch: Batch) -> dict[str, Tensor]:
        """Also ``tokens``, bool ``[B, T]``: what is no padding."""
        return {**super().extra(batch), "tokens": batch["attention_mask"].bool()}

    def metrics(self) -> SequenceClassificationMetrics:
        """A fresh collector."""
        return SequenceClassificationMetrics()

    def example(self, batch: Batch) -> Batch:
        """The first text, without its padding."""
        width = int(batch["attention_mask"][0].sum())
        return {name: value[:1, :width] if value.ndim > 1 else value[:1] for name, value in batch.items()}

    def check_outputs(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> None:
        """Refuse class counts that do not match each other or the data, and labels out of range."""
        size, classes = len(batch["input_ids"]), self.spec.num_classes
        for who, output in (("student", student), ("teacher", teacher)):
            shape = None if output is None else list(output.logits.shape)
            if shape is not None and (len(shape) != 2 or shape[0] != size):
                raise ConfigError(
                    f"the {who} must give logits [{size}, C] for {size} texts, got {shape}; use a sequence classifier"
                )
            if shape is not None and shape[1] != classes:
                raise ConfigError(
                    f"the {who} has {shape[1]} classes and the data {classes}; set model.num_classes to "
                    "${spec.num_classes}"
                )
        if batch.get("label") is not None:
            check_labels(batch["label"], classes, _ADVICE)


class SequenceClassificationMetrics(ClassificationMetrics):
    """What :class:`~kdkit.tasks.classification.ClassificationMetrics` measures, and what GLUE asks for.

    ``f1``: harmonic mean of precision and recall of class 1 (for two classes), by torchmetrics; ``matthews``: Matthews'
    correlation of answers and labels, by scikit-learn as in GLUE: it is 0 for a network that always says the same,
    where torchmetrics gives another number. Both are over the texts with a label.
    """

    WHAT = "texts"

    def __init__(self) -> None:
        super().__init__()
        self._parts["choices"] = []

    @torch.no_grad()
    def update(self, out: StepOutputs, batch: Batch) -> None:
        """Add one batch; see the class for what is measured."""
        super().update(out, batch)
        if out.labels is not None:
            labelled = out.labelled()
            labels = out.labels[labelled]
            labels = labels.argmax(1) if labels.is_floating_point() else labels
            choice = out.student.logits.detach()[labelled].argmax(1)
            self._parts["choices"].append(torch.stack([choice, labels]).cpu())

    def compute(self) -> dict[str, float]:
        """All metrics.

        Raises:
            DataError: if no text with a label was seen.
        """
        from sklearn.metrics import matthews_corrcoef
        from torchmetrics.functional.classification import binary_f1_score

        metrics = super().compute()
        choice, label = torch.cat(self._parts["choices"], 1)
        glue = {"matthews": float(matthews_corrcoef(label.numpy(), choice.numpy()))}
        if self._classes == 2:
            glue = {"f1": float(binary_f1_score(choice, label)), **glue}
        return {"accuracy": metrics.pop("accuracy"), **glue, **metrics}
