"""The measurements of ``losses.py`` as a page: every case with every contender as a ratio to kdkit.

python benchmarks/perf/losses.py dense --json dense.json
python benchmarks/perf/ratios.py dense.json small.json > docs/speed.md
"""

from __future__ import annotations

import json
import statistics
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

HEAD = """\
# Speed and memory of the losses

Written by `python benchmarks/perf/ratios.py` from what these commands measured; read ratios, not milliseconds.

<!-- not run: takes an hour and packages that kdkit does not need -->
```bash
{commands}
```

Forward and backward of one step in float32. Each contender has a process of its own; they are asked in turn over five
rounds, and the medians are compared. A ratio above 1 means that kdkit is faster, or needs less; *plain* is the textbook
form in torch, *mask first* the same with masked rows dropped before, *authors* the form of the paper's code written
plainly, other names are packages. Memory is the peak beyond the inputs, the gradient included. Differences of a tenth
are within the noise of these machines.

| measured | commit | torch | machine |
|---|---|---|---|
{sources}
"""


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _case(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """The lines of one case; the first contender is kdkit."""
    ours = rows[0]
    own = statistics.median(ours["seconds"])
    memory = "–" if ours["mib"] is None else f"{ours['mib']:.1f}"
    lines = [f"| {title} | kdkit | {_short(own)} | 1 | {memory} | 1 |"]
    for row in rows[1:]:
        share = row["mib"] / ours["mib"] if row["mib"] is not None and ours["mib"] else None
        space = "–" if row["mib"] is None else f"{row['mib']:.1f}"
        time = _short(statistics.median(row["seconds"]))
        lines.append(f"| | {row['name']} | {time} | {_times(row['ratio'])} | {space} | {_times(share)} |")
    return lines


def page(files: list[Path]) -> str:
    """The page, in Markdown."""
    found = [json.loads(file.read_text()) for file in files]
    commands = "\n".join(f"python benchmarks/perf/losses.py {run['command']}" for run in found)
    sources = "\n".join(
        f"| {run['date']} | {run['commit']} | {run['torch']} | {run['machine']}, {run['threads']} threads |"
        for run in found
    )
    parts = [HEAD.format(commands=commands, sources=sources)]
    for run in found:
        parts += [
            f"\n## {run['title']}\n",
            "| case | | ms | time / kdkit | MiB | memory / kdkit |",
            "|---|---|--:|--:|--:|--:|",
        ]
        for title, rows in groupby(run["rows"], key=lambda row: row["case"]):
            parts += _case(title, list(rows))
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page([Path(word) for word in sys.argv[1:]]))
