"""GOLD: the teacher's vocabulary may be of any size, and rests come from the alignment."""

from __future__ import annotations

from typing import Any

from . import Departure


def construct(classes: int) -> dict[str, Any]:
    return {"shared": [[entry, entry] for entry in range(0, classes, 2)]}


DEPARTURE = Departure(construct=construct, shapes="", function_only=frozenset({"student_rest", "teacher_rest"}))
