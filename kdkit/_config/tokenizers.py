"""Does the rest go together with a teacher that has a tokenizer of its own?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdkit.errors import ConfigError

__all__ = ["check_tokenizers"]


def check_tokenizers(settings: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
    """Refuse what needs one vocabulary, and the same positions, on both sides.

    Args:
        settings: plain settings of the run.
        losses: the losses of the student, built.

    Raises:
        ConfigError: naming the first setting that does not go together with ``data.teacher_tokenizer``.
    """
    if settings["data"].get("teacher_tokenizer") is None or "network" in settings:
        return
    from kdkit.tasks._tokenizers import crossing_losses

    teacher = settings.get("teacher") or {}
    for name, loss in losses.items():
        if loss.needs_teacher and not loss.crosses_tokenizers:
            raise ConfigError(
                f"loss.{name} compares student and teacher token by token, and data.teacher_tokenizer gives the "
                f"teacher tokens of its own; choose losses that go across tokenizers ({', '.join(crossing_losses())}), "
                "or set data.teacher_tokenizer=null if both have the same"
            )
    refused = {
        "strategy": settings.get("strategy") is not None,
        "chain": bool(settings.get("chain")),
        "teacher_loss": bool(settings.get("teacher_loss")),
        "teacher.ema": teacher.get("ema") is not None,
        "teacher.cached": teacher.get("cached") is not None,
        "teacher.served": teacher.get("served") is not None,
        "teacher.routed": teacher.get("routed") is not None,
    }
    for key, there in refused.items():
        if there:
            raise ConfigError(
                f"{key} needs student and teacher to read the same tokens, and data.teacher_tokenizer gives the "
                "teacher its own; leave one of the two out"
            )
