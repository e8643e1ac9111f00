"""Language models with two tokenizers, or with one whose vocabulary some network has padded."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from kdkit.data._base import Batch, TextSpec
from kdkit.errors import ConfigError
from kdkit.outputs import Alignment, ModelOutput

__all__ = ["aligned", "common_width", "crossing_losses", "refuse_mismatch", "tokens_of"]


def tokens_of(batch: Batch, teacher: bool) -> dict[str, Tensor]:
    """``input_ids``, ``document_ids`` and ``position_ids`` of a batch, the teacher's where it has tokens of its own."""
    own = "teacher_" if teacher and "teacher_input_ids" in batch else ""
    return {name: batch[own + name] for name in ("input_ids", "document_ids", "position_ids")}


def aligned(batch: Batch) -> Alignment | None:
    """The alignment of a batch, shifted as the outputs are: a position belongs to the token that it predicts."""
    if "groups" not in batch:
        return None
    names = ("groups", "teacher_groups", "input_ids", "teacher_input_ids")
    return Alignment(*(batch[name][:, 1:] for name in names))


def common_width(widths: tuple[int, int], spec: TextSpec) -> int | None:
    """How many entries two vocabularies of one tokenizer have in common: the smaller number, if all that the tokenizer
    knows is below it and the rest can be padding; else ``None``.

    Padding comes in whole multiples of 8 and adds less than 128 entries, or less than a fiftieth of what the tokenizer
    knows.
    """
    entries = spec.vocab_size
    for width in widths:
        padding = width - entries
        if padding != 0 and (width % 8 or not 0 < padding < max(128, entries // 50)):
            return None
    return min(widths)


def refuse_mismatch(student: ModelOutput, teacher: ModelOutput) -> NoReturn:
    """Say that two vocabularies do not belong to one tokenizer.

    Raises:
        ConfigError: always.
    """
    sizes = student.logits.shape[-1], teacher.logits.shape[-1]
    raise ConfigError(
        f"the student's vocabulary has {sizes[0]} tokens and the teacher's {sizes[1]}, more than padding explains; "
        "name the teacher's tokenizer with data.teacher_tokenizer=… and choose losses that go across tokenizers "
        f"({', '.join(crossing_losses())}), or use one tokenizer and one vocab_size for both"
    )


def crossing_losses() -> list[str]:
    """Names of the losses that go across tokenizers, as recipes call them."""
    import kdkit.losses

    members = [getattr(kdkit.losses, name) for name in kdkit.losses.__all__]
    crossing = [member for member in members if getattr(member, "crosses_tokenizers", False)]
    return sorted(member.__module__.rpartition(".")[2] for member in crossing)
