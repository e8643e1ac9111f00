"""Numbers as people read them: units, digits, signs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "METRICS",
    "NOTHING",
    "Metric",
    "bytes_text",
    "count_text",
    "difference_text",
    "finite",
    "interval_text",
    "join",
    "flatten",
    "metric",
    "milliseconds_text",
    "p_phrase",
    "p_text",
    "seconds_text",
    "share_digits",
    "spread_text",
    "value_text",
]

NOTHING = "–"
"""Shown where there is no number."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown.

    Attributes:
        name: key in the results.
        label: what people call it.
        share: a share of one, shown in per cent (differences in points).
        digits: decimals when it is not a share.
        higher_is_better: direction; ``None`` where neither is better.
        meaning: one line for readers who do not know it.
    """

    name: str
    label: str
    share: bool = False
    digits: int = 3
    higher_is_better: bool | None = None
    meaning: str = ""


METRICS: dict[str, Metric] = {
    entry.name: entry
    for entry in (
        Metric("accuracy", "accuracy", True, 1, True, "share of right answers"),
        Metric("top5", "top-5 accuracy", True, 1, True, "share with the right answer among the five likeliest"),
        Metric("f1", "F1", True, 1, True, "harmonic mean of precision and recall of the second class"),
        Metric("matthews", "Matthews correlation", False, 3, True, "of answers and labels; 0 is chance, 1 all right"),
        Metric("cosine", "cosine to the reference", False, 4, True, "of a text's vector and the reference's, mean"),
        Metric(
            "spearman", "rank correlation of similarities", False, 4, True, "over pairs of texts, with the reference's"
        ),
        Metric("perplexity", "perplexity", False, 2, False, "exp of the mean loss per token"),
        Metric("bits_per_byte", "bits per byte", False, 3, False, "code length per byte of text, any tokenizer"),
        Metric("nll", "NLL", False, 3, False, "mean negative log-likelihood, in nats"),
        Metric("brier", "Brier score", False, 3, False, "squared error of the predicted probabilities"),
        Metric("ece", "ECE", True, 1, False, "gap between confidence and accuracy, 15 equal bins"),
        Metric("adaptive_ece", "adaptive ECE", True, 1, False, "the same gap, bins of equal size"),
        Metric("agreement", "agreement with the teacher", True, 1, True, "share of equal top answers"),
    )
}


def metric(name: str, higher_is_better: bool | None = None) -> Metric:
    """The known metric of that name, or a plain number with three decimals."""
    known = METRICS.get(name)
    if known is not None and higher_is_better in (None, known.higher_is_better):
        return known
    label = known.label if known else name.replace("_", " ")
    return Metric(name, label, bool(known and known.share), known.digits if known else 3, higher_is_better)


def finite(value: Any) -> float | None:
    """A finite number as float, anything else as ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def share_digits(samples: Any) -> int:
    """Decimals for per-cent values measured on that many samples: one step of the measure stays visible."""
    return 2 if (finite(samples) or 0) >= 5000 else 1


def value_text(of: Metric, value: Any, digits: int | None = None) -> str:
    """``0.9643`` as ``"96.4 %"`` for a share, else with the metric's digits; ``digits`` counts for shares only."""
    number = finite(value)
    if number is None:
        return NOTHING
    if of.share:
        return f"{100 * number:.{of.digits if digits is None else digits}f} %"
    return _plain(number, of.digits)


def spread_text(of: Metric, mean: Any, std: Any, digits: int | None = None) -> str:
    """``"96.4 ± 0.3 %"``; without a spread just the mean."""
    if finite(mean) is None or finite(std) is None:
        return value_text(of, mean, digits)
    if of.share:
        shown = of.digits if digits is None else digits
        return f"{100 * mean:.{shown}f} ± {100 * std:.{shown}f} %"
    return f"{_plain(mean, of.digits)} ± {_plain(std, of.digits)}"


def difference_text(of: Metric, value: Any, digits: int | None = None, *, unit: bool = True) -> str:
    """A signed difference: ``"+2.3 points"`` for a share, ``"−1.24"`` for a number."""
    number = finite(value)
    if number is None:
        return NOTHING
    shown = (of.digits if digits is None else digits) if of.share else of.digits
    scaled = round(100 * number if of.share else number, shown)
    sign = "+" if scaled > 0 else "−" if scaled < 0 else "±"
    text = f"{sign}{abs(scaled):.{shown}f}"
    return f"{text} points" if of.share and unit else text


def interval_text(of: Metric, low: Any, high: Any, digits: int | None = None) -> str:
    """``"+1.2 to +3.4"``, in the unit of :func:`difference_text`."""
    if finite(low) is None or finite(high) is None:
        return NOTHING
    return f"{difference_text(of, low, digits, unit=False)} to {difference_text(of, high, digits, unit=False)}"


def p_text(p: Any) -> str:
    """A p-value with the digits that mean something."""
    number = finite(p)
    if number is None:
        return NOTHING
    if number < 0.001:
        return "<0.001"
    return f"{number:.3f}" if number < 0.1 else f"{number:.2f}"


def p_phrase(p: Any) -> str:
    """``"p = 0.012"`` or ``"p < 0.001"``."""
    text = p_text(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def count_text(value: Any) -> str:
    """``12345`` as ``"12.3 k"``, three significant digits."""
    number = finite(value)
    if number is None:
        return NOTHING
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def bytes_text(value: Any) -> str:
    """``52300`` as ``"52.3 kB"`` (decimal units, as drives and downloads are counted)."""
    number = finite(value)
    if number is None:
        return NOTHING
    return _scaled(number, 1000, ("B", "kB", "MB", "GB", "TB", "PB"))


def milliseconds_text(value: Any) -> str:
    """A latency, given in milliseconds."""
    number = finite(value)
    if number is None:
        return NOTHING
    if number >= 1000:
        return f"{number / 1000:.3g} s"
    return f"{number:.3g} ms" if number >= 1 else f"{1000 * number:.3g} µs"


def seconds_text(value: Any) -> str:
    """A duration, given in seconds: ``"12.3 s"``, ``"2 min 05 s"``, ``"3 h 20 min"``."""
    number = finite(value)
    if number is None:
        return NOTHING
    if number < 59.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(number / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def join(words: Iterable[str], last: str = "and") -> str:
    """``"a, b and c"``."""
    parts = list(words)
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names, as they are written on the command line."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _plain(number: float, digits: int) -> str:
    if abs(number) >= 1e6:
        return f"{number:.3g}"
    text = f"{number:.{digits}f}" if abs(number) < 1000 else f"{number:,.0f}"
    return text.replace("-", "−")


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    index = 0
    while index < len(units) - 1 and abs(number) >= base * 0.9995:
        number /= base
        index += 1
    if index == 0:
        return f"{number:g} {units[0]}".rstrip()
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f} {units[index]}"
