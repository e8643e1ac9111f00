"""What the fused losses cost beside their peers, and how exact they are; see ``losses.py`` for how it is measured.

    python benchmarks/perf/fused.py [--rounds 5] [--threads 2] [--only "forward KL"] [--json FILE]

Beyond the tables, the error of the float32 loss relative to float64 on the same inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.perf._losses_fused import SIZES, inputs
from benchmarks.perf.losses import main

NAMES = ("kl", "reverse_kl", "js", "skew_kl")


def errors(size: str) -> dict[str, float]:
    """Relative error of each divergence in float32, on as many rows as float64 takes seconds for."""
    from kdkit.losses import fused_linear_divergence

    given = inputs(size)
    hidden, head, teacher_hidden, teacher_head = given[0][:128], given[1], given[2][:128], given[3]
    tensors = hidden, head, teacher_hidden, teacher_head
    wide = tuple(each.double() for each in tensors)
    found = {}
    for name in NAMES:
        exact = fused_linear_divergence(*wide, divergence=name).item()
        found[name] = abs(fused_linear_divergence(*tensors, divergence=name).item() / exact - 1)
    return found


if __name__ == "__main__":
    sys.argv.insert(1, "fused")
    main()
    for each in SIZES:
        print(f"\nrelative error, {each}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors(each).items()))
