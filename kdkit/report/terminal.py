"""A comparison on the terminal: its leaderboard, and where a search stands."""

from __future__ import annotations

from pathlib import Path

from kdkit._files import read_jsonl
from kdkit.report._run import read_json
from kdkit.report.leaderboard import format_table, sentences, summarize
from kdkit.report.search_report import search_sentences

__all__ = ["print_comparison"]


def print_comparison(folder: str | Path) -> None:
    """Print the leaderboard of a comparison as far as it has come, and what it says.

    Args:
        folder: of ``kdkit compare``; nothing is written.
    """
    from rich.console import Console

    folder = Path(folder)
    about = read_json(folder / "compare.json")
    results = read_jsonl(folder / "results.jsonl")
    said = search_sentences(about, results)
    if any(str(cell["method"]) == about["baseline"] for cell in results):
        rows = summarize(results, about["baseline"], about["primary"], about["higher_is_better"])
        table, plain = format_table(rows)
        console = Console()
        print()
        if console.is_terminal:
            console.print(table)
        else:
            print(plain)
        said = [*sentences(rows), *said]
    print("\n" + "\n".join(said), flush=True)
