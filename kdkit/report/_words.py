"""A run in plain words: what was done, what came out, how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdkit.report._format import (
    count_text,
    difference_text,
    finite,
    join,
    seconds_text,
    value_text,
)
from kdkit.report._run import ALONE, DISTILLED, TEACHER, Run

__all__ = ["caveats", "data_text", "losses_text", "outcome", "story"]

_SAMPLES = {
    "classification": "images",
    "causal_lm": "rows of text",
    "sequence_classification": "texts",
    "embedding": "texts",
}
_LOSSES = {"ce": "cross-entropy"}


def story(run: Run) -> list[str]:
    """What was done, as sentences."""
    main, teacher = run.main, run.row(TEACHER)
    sentences = []
    role = "student" if run.distilled else "network"
    trained = f"The {role}, {_network(main)}, was trained on {data_text(run)}{_effort(run)}"
    losses = losses_text(run.results.get("losses") or {})
    if losses:
        trained += f" with {losses}"
    if not run.distilled:
        return [f"{trained}, alone, without a teacher."]
    if teacher is None:
        sentences.append(f"{trained}. No separate teacher was measured.")
    elif run.results.get("online"):
        others = [_network(row) for row in run.rows if str(row.get("name")).startswith(TEACHER)]
        beside = f"its teacher, {others[0]}" if len(others) == 1 else f"its teachers {' and '.join(others)}"
        sentences.append(f"{trained}, together with {beside}, which learned at the same time.")
    elif run.results.get("averaged"):
        sentences.append(f"{trained}, learning from a moving average of its own weights.")
    elif run.results.get("chain"):
        links = [f"{name}, {_network(run.row(name) or {})}" for name in reversed(run.results["chain"])]
        path = ", which learned from ".join([*links, f"the teacher, {_network(teacher)}"])
        sentences.append(f"{trained}, learning from {path}.")
    else:
        sentences.append(f"{trained}, learning from a fixed teacher, {_network(teacher)}.")
    if run.row(ALONE):
        sentences.append("The same student was also trained alone, without the teacher, for comparison.")
    return sentences


def outcome(run: Run) -> list[str]:
    """What came out on the test split."""
    value = finite((run.main.get("metrics") or {}).get(run.primary.name))
    if value is None:
        return [f"The run has no {run.primary.label} on the test split."]
    role = "distilled student" if run.row(DISTILLED) else "student" if run.distilled else "network"
    tested = finite(run.data.get("test"))
    where = f"On the {int(tested):,} test {samples(run)}" if tested else "On the held-out data"
    said = f"{where} the {role} reaches {_measure(run, value)}"
    return _against_alone(run, said, value)


def caveats(run: Run) -> list[str]:
    """One seed, a finite test set: how much of the outcome may be chance."""
    sentences = []
    value, tested = run.value(str(run.main.get("name"))), finite(run.data.get("test"))
    if value is not None and run.primary.name == "accuracy" and tested and run.results.get("task") == "classification":
        error = 100 * math.sqrt(value * (1 - value) / tested)
        if error > 0:
            sentences.append(
                f"{int(tested):,} test images measure accuracy to about ± {error:.2g} points (standard error)."
            )
    if run.row(ALONE) and run.row(DISTILLED):
        seed = run.results.get("seed")
        which = f" (seed {seed})" if seed is not None else ""
        sentences.append(f"This is one run{which}; `kdkit compare` repeats it over seeds and tests the difference.")
    return sentences


def data_text(run: Run) -> str:
    """``"digits (1.30 k training images)"``."""
    name = str(run.data.get("name") or "its data")
    size = finite(run.data.get("train"))
    if not size:
        return name
    labelled = finite(run.data.get("labelled"))
    some = f", {int(labelled):,} of them labelled" if labelled is not None and labelled < size else ""
    return f"{name} ({int(size):,} training {samples(run)}{some})"


def losses_text(losses: Mapping[str, Any]) -> str:
    """``"cross-entropy (weight 1) and kd (weight 0.5)"``."""
    return join(f"{_LOSSES.get(name, name)}{_weight(weight)}" for name, weight in losses.items())


def samples(run: Run) -> str:
    """What the data set counts."""
    return _SAMPLES.get(str(run.results.get("task")), "samples")


def _against_alone(run: Run, said: str, value: float) -> list[str]:
    alone, teacher = run.value(ALONE), run.value(TEACHER)
    if not run.distilled or alone is None:
        if teacher is not None and run.distilled:
            return [f"{said}; its teacher reaches {_measure(run, teacher)}."]
        return [f"{said}."]
    difference = value - alone
    better = difference > 0 if run.primary.higher_is_better else difference < 0
    size = difference_text(run.primary, difference, run.digits).lstrip("+−±")
    relation = f"{size} {'better' if better else 'worse'} than" if difference else "exactly as good as"
    sentences = [f"{said}, {relation} the same student alone ({value_text(run.primary, alone, run.digits)})."]
    if teacher is not None:
        gap = teacher - alone
        text = f"The teacher reaches {_measure(run, teacher)}"
        if (gap > 0) == run.primary.higher_is_better and gap and better and abs(difference) <= abs(gap):
            text += f"; distillation closed {100 * difference / gap:.0f} % of the gap between them"
        elif better and (value > teacher) == run.primary.higher_is_better:
            text += ", so the student ends above its teacher" if value != teacher else ""
        sentences.append(text + ".")
    return sentences


def _measure(run: Run, value: float) -> str:
    text = value_text(run.primary, value, run.digits)
    return f"{text} {run.primary.label}" if run.primary.share else f"{_article(run.primary.label)} of {text}"


def _article(label: str) -> str:
    return f"a {label}" if label[0].islower() else label


def _network(row: Mapping[str, Any]) -> str:
    name = row.get("network") or row.get("name") or "a network"
    parameters = finite(row.get("parameters"))
    return f"{name} ({count_text(parameters)} parameters)" if parameters else str(name)


def _effort(run: Run) -> str:
    steps, seconds = finite(run.results.get("steps")), finite(run.main.get("seconds"))
    parts = []
    if steps:
        parts.append(f"for {int(steps):,} steps")
    if seconds:
        parts.append(f"in {seconds_text(seconds)}")
    return " " + " ".join(parts) if parts else ""


def _weight(weight: Any) -> str:
    if weight is None:
        return ""
    number = finite(weight)
    if number is not None:
        return f" (weight {number:g})"
    target = weight.get("_target_", "") if isinstance(weight, Mapping) else str(weight)
    return f" (weight scheduled: {str(target).rsplit('.', 1)[-1]})" if target else " (weight scheduled)"
