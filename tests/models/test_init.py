"""Names are found on first use, and naming one loads only its own library."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kdkit.features
import kdkit.models
import kdkit.tasks
import kdkit.teachers

HEAVY = ("timm", "transformers", "torchvision", "accelerate", "hydra", "ot", "torchmetrics", "sklearn")


@pytest.mark.parametrize("package", [kdkit.features, kdkit.models, kdkit.tasks, kdkit.teachers])
def test_every_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name).__name__ == name
        assert name in dir(package)


@pytest.mark.parametrize("package", [kdkit.models, kdkit.tasks, kdkit.teachers])
def test_unknown_names(package: object) -> None:
    with pytest.raises(AttributeError, match=r"module 'kdkit\..*' has no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_small_networks_load_torch_only() -> None:
    code = (
        "import sys\nfrom kdkit.models import small_cnn\nfrom kdkit.tasks import CausalLM, Classification\n"
        "from kdkit.teachers import EnsembleTeacher, LiveTeacher, class_means\nimport kdkit.features\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
