"""Vectors of texts, held against those of a reference encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.data._base import Batch, LabelledTextSpec, Spec
from kdkit.errors import ConfigError, DataError
from kdkit.models._network import Network
from kdkit.models._texts import TextNetwork
from kdkit.outputs import ModelOutput, StepOutputs
from kdkit.tasks._base import Metrics, Task

__all__ = ["Embedding", "EmbeddingMetrics"]

_PAIRED = 1000
"""Texts whose similarities to each other are compared: half a million pairs."""


class Embedding(Task):
    """Texts to vectors ``[B, D]``, which stand where other tasks have logits; there are no labels.

    Losses read the vectors as the layer ``embedding`` of a :class:`~kdkit.models.sentence_encoders.SentenceEncoder`.

    Args:
        spec: of a set of texts with targets, such as :class:`~kdkit.data.StdlibDocstrings`.

    Raises:
        ConfigError: if the data have no targets.
    """

    name = "embedding"
    primary = "cosine"
    higher_is_better = True
    unit = "texts"
    spec: LabelledTextSpec

    def __init__(self, spec: Spec) -> None:
        if not isinstance(spec, LabelledTextSpec) or spec.measure != "cosine":
            raise ConfigError(
                f"task embedding needs texts with target vectors, and these data ({spec.kind}) have none; use "
                "data=stdlib_docstrings"
            )
        super().__init__(spec)

    def wrap(
        self, module: nn.Module, *, normalization: Any = None, input_size: int | None = None, name: str = "network"
    ) -> TextNetwork:
        """Put an encoder into its wrapper.

        Raises:
            ConfigError: for settings of images, or a model too small for the vocabulary or the longest text.
        """
        if normalization is not None or input_size is not None:
            raise ConfigError(
                f"normalization and input_size are for images, got {normalization!r} and {input_size!r} "
                "for an encoder of texts; leave both null"
            )
        config = getattr(module, "config", None)
        for what, needed in (("vocab_size", self.spec.vocab_size), ("max_position_embeddings", self.spec.context)):
            size = getattr(config, what, None)
            if size is not None and size < needed:
                raise ConfigError(f"the {name} has {what}={size} and the data need {needed}; choose another {name}")
        return TextNetwork(module, name=name)

    def inputs(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """Ids ``[B, T]``, the mask of what is no padding, and for networks that tell them apart the kinds of tokens."""
        names = ["input_ids", "attention_mask"]
        if isinstance(network, TextNetwork) and network.kinds:
            names.append("token_type_ids")
        return {name: batch[name] for name in names}

    def targets(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Neither labels nor a mask."""
        return None, None

    def extra(self, batch: Batch) -> dict[str, Tensor]:
        """Also ``tokens``, bool ``[B, T]``: what is no padding."""
        return {**super().extra(batch), "tokens": batch["attention_mask"].bool()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Every text is a position, none has a label."""
        index = batch["index"]
        positions = batch["weight"].sum() if "weight" in batch else torch.ones_like(index).sum()
        return {"positions": positions, "labelled": torch.zeros_like(positions)}

    def metrics(self) -> EmbeddingMetrics:
        """A fresh collector."""
        return EmbeddingMetrics()

    def example(self, batch: Batch) -> Batch:
        """The first text, without its padding."""
        width = int(batch["attention_mask"][0].sum())
        wide = ("input_ids", "attention_mask", "token_type_ids")
        return {name: value[:1, :width] if name in wide else value[:1] for name, value in batch.items()}

    def check_outputs(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> None:
        """Refuse vectors that cannot be held against the targets."""
        shape = list(batch["target"].shape)
        for who, output in (("student", student), ("teacher", teacher)):
            if output is not None and list(output.logits.shape) != shape:
                raise ConfigError(
                    f"the {who} must give vectors {shape}, as wide as the targets of the data, got "
                    f"{list(output.logits.shape)}; choose one of the reference's width"
                )


class EmbeddingMetrics(Metrics):
    """Nearness to the vectors of the reference.

    ``cosine``: mean over texts of the cosine between the network's vector and the reference's. ``spearman``: rank
    correlation, over all pairs among the first 1,000 texts, of the network's cosine similarities with the reference's:
    what a search by similarity would see.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    @torch.no_grad()
    def update(self, out: StepOutputs, batch: Batch) -> None:
        """Add one batch; see the class for what is measured."""
        pair = torch.stack([out.student.logits.detach().float(), batch["target"].float()], 1)
        self._rows.append(torch.cat([batch["index"].float().view(-1, 1, 1).expand(-1, 2, 1), pair], 2).cpu())

    def state(self) -> dict[str, Any]:
        """Index, vector and target of every text."""
        return {"rows": torch.cat(self._rows) if self._rows else None}

    def merge(self, states: list[dict[str, Any]]) -> None:
        """Put the rows of all ranks together."""
        self._rows = [state["rows"] for state in states if state["rows"] is not None]

    def compute(self) -> dict[str, float]:
        """All metrics.

        Raises:
            DataError: if fewer than three texts were seen.
        """
        from scipy.stats import spearmanr

        rows = torch.cat(self._rows) if self._rows else torch.zeros(0, 2, 2)
        if len(rows) < 3:
            raise DataError(f"an evaluation of vectors needs at least 3 texts, got {len(rows)}; use another split")
        rows = rows[rows[:, 0, 0].argsort()]
        own, reference = (F.normalize(rows[:, side, 1:], dim=-1) for side in (0, 1))
        first, second = torch.triu_indices(min(len(rows), _PAIRED), min(len(rows), _PAIRED), offset=1)
        similar = [(side[first] * side[second]).sum(1).numpy() for side in (own, reference)]
        return {"cosine": float((own * reference).sum(1).mean()), "spearman": float(spearmanr(*similar).statistic)}
