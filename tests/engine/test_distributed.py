"""Ranks and accumulation steps are the same thing to the weights: sum, then divide once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdkit._files import read_jsonl

HERE = Path(__file__).parent


def run(target: Path, processes: int, accumulation: int) -> dict:
    target.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = [str(HERE / "two_processes.py"), str(target), str(accumulation)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, *launch, *script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(target / "out.pt", weights_only=True)


@pytest.mark.slow
def test_one_process_with_four_steps_equals_two_processes_with_two(tmp_path: Path) -> None:
    one = run(tmp_path / "one", processes=1, accumulation=4)
    two = run(tmp_path / "two", processes=2, accumulation=2)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-6)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    first, second = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(first) == len(second) == 5
    for left, right in zip(first[:4], second[:4], strict=True):
        assert right["terms"] == pytest.approx(left["terms"], rel=1e-4)
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4)
