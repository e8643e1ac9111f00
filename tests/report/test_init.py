"""The package loads its parts on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdkit import report


def test_every_name_is_there() -> None:
    assert set(report.__all__) <= set(dir(report))
    for name in report.__all__:
        assert callable(getattr(report, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        report.nothing  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, kdkit.report, kdkit.report.run_report, kdkit.report.compare_report, kdkit.report.runs_report, "
        "kdkit.report.card; print([name for name in ('torch', 'matplotlib', 'jinja2', 'scipy', 'rich', 'yaml') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
