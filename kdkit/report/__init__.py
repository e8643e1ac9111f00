"""Reports: what a run or a comparison found, for people. Names load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdkit.report.card import model_card
    from kdkit.report.compare_report import write_compare_report
    from kdkit.report.leaderboard import Row, format_table, sentences, summarize
    from kdkit.report.run_report import write_report
    from kdkit.report.runs_report import write_reports
    from kdkit.report.terminal import print_comparison

__all__ = [
    "Row",
    "format_table",
    "model_card",
    "print_comparison",
    "sentences",
    "summarize",
    "write_compare_report",
    "write_report",
    "write_reports",
]

_HOME = {
    "Row": "leaderboard",
    "format_table": "leaderboard",
    "sentences": "leaderboard",
    "summarize": "leaderboard",
    "model_card": "card",
    "print_comparison": "terminal",
    "write_compare_report": "compare_report",
    "write_report": "run_report",
    "write_reports": "runs_report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
