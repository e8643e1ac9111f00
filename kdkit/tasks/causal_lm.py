"""Causal language modelling: the next token at every position, documents kept apart."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.data._base import Batch, LabelledTextSpec, Spec, TextSpec
from kdkit.errors import ConfigError, DataError, KdkitWarning
from kdkit.models._language import LanguageNetwork
from kdkit.models._network import Network
from kdkit.outputs import IGNORE_INDEX, Alignment, ModelOutput, StepOutputs
from kdkit.tasks._base import Metrics, Task
from kdkit.tasks._labels import check_labels
from kdkit.tasks._tokenizers import aligned, common_width, refuse_mismatch, tokens_of

__all__ = ["CausalLM", "CausalLMMetrics", "document_mask"]

_ADVICE = "use the tokenizer that the networks were built for"


def document_mask(document_ids: Tensor) -> Tensor:
    """Which token sees which: itself and earlier ones of its own document.

    Padding (document 0) sees earlier padding, so that no row is empty and no softmax is NaN.

    Args:
        document_ids: int64 ``[B, T]``.

    Returns:
        bool ``[B, 1, T, T]``, true where the token of a row may look at the token of a column.
    """
    length = document_ids.shape[1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    return (same & causal)[:, None]


class CausalLM(Task):
    """Text, packed into rows of a fixed length.

    A network sees a row without its last token, and its output at position ``t`` is held against token ``t + 1``.
    Where that token begins another document nothing is predicted, and nothing is learnt from the teacher either;
    the same goes for prompt and padding (label -100).

    A teacher with a tokenizer of its own reads the same text in its own tokens (``data.teacher_tokenizer``). Where the
    vocabularies differ by padding alone, the entries that only one network has are cut off its logits.

    Args:
        spec: of a text data set.
        fused_head: whether training does without logits: hidden states and heads go to the losses, which compute the
            logits of a few positions at a time (:func:`~kdkit.losses.fused_linear_divergence`). "auto" does so where
            the logits of a batch would take more than 256 MiB and everything allows it; ``True`` refuses where
            something does not, and says what.

    Raises:
        ConfigError: if the data are not text, or for another ``fused_head``.
    """

    name = "causal_lm"
    primary = "perplexity"
    higher_is_better = False
    unit = "tokens"
    spec: TextSpec

    def __init__(self, spec: Spec, fused_head: bool | Literal["auto"] = "auto") -> None:
        if not isinstance(fused_head, bool) and fused_head != "auto":
            raise ConfigError(f"task.fused_head must be auto, true or false, got {fused_head!r}")
        self.fused_head = fused_head
        if not isinstance(spec, TextSpec):
            other = "sequence_classification" if isinstance(spec, LabelledTextSpec) else "classification"
            raise ConfigError(f"task causal_lm needs text, and these data are {spec.kind}s; use task={other}")
        super().__init__(spec)
        self._width: int | None = None

    @property
    def one_vocabulary(self) -> bool:
        """Whether student and teacher share a tokenizer."""
        return self.spec.teacher is None

    @property
    def cuts_padding(self) -> bool:
        """Whether the outputs of a network lose the entries that the other one's vocabulary does not have."""
        return self._width is not None

    def alignment(self, batch: Batch) -> Alignment | None:
        """Which tokens of student and teacher cover the same bytes."""
        return aligned(batch)

    def forward(self, network: Network, batch: Batch) -> ModelOutput:
        """Run a network on a batch; padding that the other network's vocabulary does not have is cut off."""
        output = super().forward(network, batch)
        return output if self._width is None else _cut(output, self._width)

    def wrap(
        self, module: nn.Module, *, normalization: Any = None, input_size: int | None = None, name: str = "network"
    ) -> LanguageNetwork:
        """Put a language model into its wrapper.

        Args:
            module: a causal language model of transformers, or a module with the same arguments.
            normalization: must be ``None``; images only.
            input_size: must be ``None``; images only.
            name: how reports call it.

        Raises:
            ConfigError: if the model is too small for the vocabulary or the context of the data, or keeps its
                attention in a form that packed documents can not be kept apart in.
        """
        if normalization is not None or input_size is not None:
            raise ConfigError(
                f"normalization and input_size are for images, got {normalization!r} and {input_size!r} "
                "for a language model; leave both null"
            )
        network = LanguageNetwork(module, name=name)
        config = getattr(module, "config", None)
        vocabulary = getattr(config, "vocab_size", None)
        if vocabulary is not None and vocabulary < self.spec.vocab_size:
            raise ConfigError(
                f"the {name} knows {vocabulary} tokens and the data {self.spec.vocab_size}; "
                "set model.vocab_size to ${spec.vocab_size}, or use the tokenizer of that model for the data (a "
                "teacher's: data.teacher_tokenizer)"
            )
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and positions < self.spec.context - 1:
            raise ConfigError(
                f"the {name} takes {positions} positions and a row of the data has {self.spec.context} tokens; "
                "raise model.max_position_embeddings or lower data.context"
            )
        if network.attention not in ("sdpa", "eager"):
            raise ConfigError(
                f"the {name} uses attention '{network.attention}', which can not keep packed documents apart; "
                "set model.attn_implementation to sdpa or eager"
            )
        return network

    def inputs(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """What the network is called with: ids and positions of a row without its last token, and who sees whom.

        The logits that come back are ``[B, T - 1, V]``, the first ones predicting the second token."""
        tokens = tokens_of(batch, teacher=getattr(network, "reads_teacher_tokens", False))
        ids = tokens["input_ids"][:, :-1]
        mask = document_mask(tokens["document_ids"][:, :-1])
        if isinstance(network, LanguageNetwork) and network.attention == "eager":
            weight = next(network.parameters(), None)
            dtype = torch.float32 if weight is None else weight.dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": tokens["position_ids"][:, :-1]}

    def targets(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Next tokens ``[B, T - 1]`` and where they count: inside one document, and not in a prompt or padding.

        A batch of written text says by ``counts`` where: its tokens may count without being labels."""
        documents = batch["document_ids"]
        inside = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] != 0)
        labels = batch["labels"][:, 1:]
        mask = inside & (batch["counts"][:, 1:] if "counts" in batch else labels != IGNORE_INDEX)
        return labels.masked_fill(~mask, IGNORE_INDEX), mask

    def metrics(self) -> CausalLMMetrics:
        """A fresh collector."""
        return CausalLMMetrics()

    def example(self, batch: Batch) -> Batch:
        """The first row."""
        return {name: value[:1] for name, value in batch.items()}

    def check_outputs(self, student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> None:
        """Refuse vocabularies that do not match each other or the data, and labels out of range.

        Where they differ by padding alone, both outputs, and all later ones, are cut to what they have in common."""
        sides = {"student": (student, batch["input_ids"])}
        if teacher is not None:
            sides["teacher"] = (teacher, tokens_of(batch, teacher=True)["input_ids"])
        for who, (output, ids) in sides.items():
            shape, (size, length) = tuple(output.logits.shape), ids.shape
            if len(shape) != 3 or shape[:2] != (size, length - 1):
                raise ConfigError(
                    f"the {who} must give logits [{size}, {length - 1}, V] for rows of {length} tokens, "
                    f"got {list(shape)}; use a causal language model"
                )
        if teacher is not None and self.one_vocabulary:
            self._make_alike(student, teacher)
        vocabulary = student.logits.shape[-1]
        labels, _ = self.targets(batch)
        assert labels is not None
        check_labels(labels, vocabulary, _ADVICE)

    def _make_alike(self, student: ModelOutput, teacher: ModelOutput) -> None:
        """Cut off what only one of two vocabularies has, if it is padding."""
        widths = student.logits.shape[-1], teacher.logits.shape[-1]
        if widths[0] == widths[1]:
            return
        common = common_width(widths, self.spec)
        if common is None or teacher.sparse is not None:
            refuse_mismatch(student, teacher)
        self._width = common
        _cut(student, common)
        _cut(teacher, common)
        warnings.warn(
            f"the student's vocabulary has {widths[0]} entries and the teacher's {widths[1]}, for a tokenizer of "
            f"{self.spec.vocab_size}: the entries from {common} on are padding of one of them and are left out",
            KdkitWarning,
            stacklevel=2,
        )


def _cut(output: ModelOutput, width: int) -> ModelOutput:
    if output.logits.shape[-1] > width:
        output.logits = output.logits[..., :width]
    return output


class CausalLMMetrics(Metrics):
    """Quality of a language model on the tokens that count; only sums are kept.

    ``nll``: mean negative log-likelihood per token in nats. ``perplexity``: ``exp(nll)``. ``bits_per_byte``:
    all bits over all UTF-8 bytes that the predicted tokens stand for, comparable across tokenizers.
    ``accuracy``: share of tokens that were the most likely one. ``agreement``: share of positions on which the
    network and its teacher would choose the same token. ``kl_to_teacher``: mean KL(teacher || network) in nats.
    """

    ROWS = 1024
    """Positions whose float32 probabilities exist at the same time."""

    NAMES = ("tokens", "nll", "correct", "bytes", "paired", "agreement", "kl")

    def __init__(self) -> None:
        self._sums = dict.fromkeys(self.NAMES, 0.0)

    @torch.no_grad()
    def update(self, out: StepOutputs, batch: Batch) -> None:
        """Add one batch; see the class for what is measured."""
        where = out.labelled()
        assert out.labels is not None
        check_labels(out.labels, out.student.logits.shape[-1], _ADVICE)
        labels = out.labels[where]
        index = where.flatten().nonzero().squeeze(1)
        teacher = out.teacher
        sums = torch.zeros(4, dtype=torch.float64)
        for part, label in zip(index.split(self.ROWS), labels.split(self.ROWS)):
            other = None if teacher is None else teacher.rows(part)
            sums += _sums(out.student.rows(part), other, label).double().cpu()
        added: list[Any] = [
            len(labels),
            sums[0],
            sums[1],
            _count_bytes(batch, where),
            len(labels) * (teacher is not None),
        ]
        for name, value in zip(self.NAMES, [*added, sums[2], sums[3]]):
            self._sums[name] += float(value)

    def state(self) -> dict[str, Any]:
        """The sums."""
        return dict(self._sums)

    def merge(self, states: list[dict[str, Any]]) -> None:
        """Add up the sums of all ranks."""
        self._sums = {name: math.fsum(state[name] for state in states) for name in self.NAMES}

    def compute(self) -> dict[str, float]:
        """All metrics.

        Raises:
            DataError: if no token that counts was seen.
        """
        sums = self._sums
        if not sums["tokens"]:
            raise DataError("an evaluation needs tokens to predict, this split has none; evaluate on another split")
        nll = sums["nll"] / sums["tokens"]
        metrics = {"nll": nll, "perplexity": math.exp(nll) if nll < 700 else math.inf}
        if sums["bytes"]:
            metrics["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
        metrics["accuracy"] = sums["correct"] / sums["tokens"]
        if sums["paired"]:
            metrics["agreement"] = sums["agreement"] / sums["paired"]
            metrics["kl_to_teacher"] = sums["kl"] / sums["paired"]
        return metrics


def _count_bytes(batch: Batch, where: Tensor) -> float:
    return float(batch["num_bytes"][:, 1:][where].sum()) if "num_bytes" in batch else 0.0


def _sums(student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
    """``[4]``: negative log-likelihood, right choices, same choices, KL(teacher || student), summed over rows."""
    log_p = student.float().log_softmax(1)
    choice = student.argmax(1)
    nll = F.nll_loss(log_p, labels, reduction="sum")
    correct = (choice == labels).sum()
    if teacher is None:
        return torch.stack([nll, correct.to(nll), nll.new_zeros(()), nll.new_zeros(())])
    log_q = teacher.float().log_softmax(1)
    q = log_q.exp()
    kl = torch.where(q > 0, q * (log_q - log_p), torch.zeros_like(q)).sum()
    agreement = (choice == teacher.argmax(1)).sum()
    return torch.stack([nll, correct.to(nll), agreement.to(nll), kl])
