"""The model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdkit.errors import InputError
from kdkit.report import model_card

SNIPPET = "import timm\n\nmodel = timm.create_model('local-dir:student', pretrained=True)"


def load(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def header(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_an_image_student(make_run: Callable[..., Path]) -> None:
    card = model_card(load(make_run(events=False)), {}, SNIPPET)
    top = header(card)
    assert top["library_name"] == "timm" and top["pipeline_tag"] == "image-classification"
    assert top["license"] == "unknown" and "knowledge-distillation" in top["tags"]
    result = top["model-index"][0]["results"][0]
    assert result["metrics"][0] == {"type": "accuracy", "name": "accuracy", "value": 0.964}
    assert result["dataset"]["name"] == "digits"
    assert f"```python\n{SNIPPET}\n```" in card
    assert "distilled with kdkit from a resnet20 teacher" in card
    assert "fingerprint `3fa9" in card
    assert "| accuracy | 98.2 % | 93.8 % | 96.4 % |" in card
    assert "## Limits" in card and "No licence has been chosen" in card


def test_a_language_model(make_run: Callable[..., Path]) -> None:
    card = model_card(
        load(make_run(modality="text", events=False)), {}, "from transformers import AutoModelForCausalLM"
    )
    top = header(card)
    assert top["library_name"] == "transformers" and top["pipeline_tag"] == "text-generation"
    assert "| perplexity | 9.31 | 17.82 | 16.04 |" in card
    assert "for language modelling" in card


def test_a_network_alone_and_a_library_of_the_callers_choice(make_run: Callable[..., Path]) -> None:
    results = load(make_run(events=False, kind="train"))
    results["rows"] = results["rows"][1:2]
    card = model_card(results, {}, "from safetensors.torch import load_file", library="torchvision")
    assert header(card)["library_name"] == "torchvision"
    assert header(model_card(results, {}, "import torch"))["library_name"] == "pytorch"
    assert "knowledge-distillation" not in header(card)["tags"]
    assert "teacher's mistakes" not in card and "without a teacher" in card


def test_missing_fields_and_missing_numbers() -> None:
    results = {"primary": "accuracy", "rows": [{"name": "student distilled", "metrics": {"accuracy": None}}]}
    card = model_card(results, {}, "import torch")
    assert "model-index" not in header(card)
    assert "The run has no accuracy on the test split." in card
    with pytest.raises(InputError, match="must hold 'primary' and 'rows'"):
        model_card({}, {}, "")
