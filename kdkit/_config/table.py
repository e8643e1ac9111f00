"""Tables for people: rich on a terminal, aligned text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["print_table"]


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print rows under headers.

    Args:
        headers: one per column.
        rows: cells, without line breaks.
        title: a line above.
    """
    if sys.stdout.isatty():
        _rich(headers, rows, title)
    else:
        _plain(headers, rows, title)


def _rich(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(header, no_wrap=place == 0, style="bold" if place == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _plain(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    widths = [max(len(line[place]) for line in [headers, *rows]) for place in range(len(headers))]
    if title:
        print(title)
    for line in [headers, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
