"""Made-up run and compare folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdkit._files import append_jsonl, write_atomic, write_json


def reliability(confidence_shift: float) -> dict[str, list[float]]:
    centres = (np.arange(15) + 0.5) / 15
    return {
        "confidence": centres.tolist(),
        "accuracy": np.clip(centres - confidence_shift * np.sin(math.pi * centres), 0, 1).tolist(),
        "count": [0, 1, 2, 3, 4, 6, 9, 12, 17, 23, 31, 42, 60, 90, 200],
    }


def vision_row(name: str, network: str, accuracy: float, ece: float, parameters: int, **more: Any) -> dict[str, Any]:
    metrics = {
        "accuracy": accuracy,
        "top5": min(1.0, accuracy + 0.03),
        "nll": 4 * (1 - accuracy),
        "brier": 1.6 * (1 - accuracy),
        "ece": ece,
        "adaptive_ece": 1.1 * ece,
    }
    if name != "teacher":
        metrics["agreement"] = accuracy - 0.01
    return {
        "name": name,
        "network": network,
        "origin": more.pop("origin", ""),
        "metrics": metrics,
        "parameters": parameters,
        "flops": 60 * parameters,
        "latency_ms": 0.2 + parameters / 4e5,
        "file_bytes": 4 * parameters + 2200,
        "seconds": 2 + parameters / 2e4,
        "extras": {"reliability": reliability(5 * ece)},
        **more,
    }


def text_row(name: str, network: str, perplexity: float, parameters: int) -> dict[str, Any]:
    nll = math.log(perplexity)
    metrics = {"perplexity": perplexity, "nll": nll, "bits_per_byte": nll / 2.1, "accuracy": 0.62 - nll / 20}
    return {
        "name": name,
        "network": network,
        "origin": "",
        "metrics": metrics if name == "teacher" else {**metrics, "agreement": 0.71},
        "parameters": parameters,
        "flops": None,
        "latency_ms": 3.4,
        "file_bytes": 4 * parameters,
        "seconds": None,
    }


def results_of(modality: str) -> dict[str, Any]:
    common = {
        "kdkit": "0.1.0",
        "kind": "distill",
        "seed": 0,
        "steps": 600,
        "seconds": 31.4,
        "online": False,
        "summary": {"best epoch": 11},
        "environment": {"python": "3.12.4", "torch": "2.8.0", "device": "cpu"},
    }
    if modality == "text":
        rows = [
            text_row("teacher", "llama-4l-256", 9.31, 4_512_000),
            text_row("student alone", "llama-2l-96", 17.82, 812_345),
            text_row("student distilled", "llama-2l-96", 16.04, 812_345),
        ]
        data = {"name": "stdlib", "fingerprint": "ab" * 32, "train": 12_000, "val": 500, "test": 700}
        losses = {"ce": 0.5, "kl": {"_target_": "kdkit.schedules.Cosine", "start": 1.0}}
        more = {"command": "kdkit distill experiment=stdlib_lm", "name": "stdlib_lm", "task": "causal_lm"}
        return {
            **common, **more, "primary": "perplexity", "higher_is_better": False, "data": data, "losses": losses,
            "rows": rows,
        }  # fmt: skip
    rows = [
        vision_row(
            "teacher", "resnet20", 0.982, 0.011, 272_474, origin="trained by its own recipe (12.3 s), kept as 3fa9c1"
        ),
        vision_row("student alone", "resnet8 (width 4)", 0.938, 0.034, 12_345),
        vision_row("student distilled", "resnet8 (width 4)", 0.964, 0.016, 12_345),
    ]
    return {
        **common,
        "command": "kdkit distill experiment=digits 'loss=[ce,kd]' seed=0",
        "name": "digits",
        "task": "classification",
        "primary": "accuracy",
        "higher_is_better": True,
        "data": {"name": "digits", "fingerprint": "3fa9" * 16, "train": 1297, "val": 200, "test": 500},
        "losses": {"ce": 1.0, "kd": 0.9},
        "rows": rows,
    }


def write_events(path: Path, results: dict[str, Any], steps: int = 600, every: int = 4) -> None:
    generator = np.random.default_rng(results["seed"])
    primary, falling = results["primary"], not results["higher_is_better"]
    for row in results["rows"]:
        network = {"student distilled": "student"}.get(row["name"], row["name"])
        final = row["metrics"][primary]
        terms = list(results["losses"]) if network == "student" else ["ce"]
        for step in range(every, steps + 1, every):
            values = {
                term: (1 + i) * 0.3 + 2.2 * math.exp(-step / 120) * (1 + 0.1 * generator.standard_normal())
                for i, term in enumerate(terms)
            }
            append_jsonl(path, {
                "event": "train", "network": network, "step": step, "epoch": step // 50, "time": step / 60,
                "loss": sum(values.values()), "terms": values, "lr": 0.05, "throughput": 9000.0,
            })  # fmt: skip
        for step in range(50, steps + 1, 50):
            gap = math.exp(-step / 100)
            value = final * (1 + 8 * gap) if falling else final - 0.5 * gap
            metrics = {primary: value + 0.004 * final * generator.standard_normal()}
            append_jsonl(path, {"event": "eval", "network": network, "split": "val", "step": step, "metrics": metrics})


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name="run", modality="vision", events=True, **changes)`` writes a run folder and returns it."""

    def make(name: str = "run", modality: str = "vision", events: bool = True, **changes: Any) -> Path:
        folder = tmp_path / name
        results = {**results_of(modality), **changes}
        write_json(folder / "results.json", results)
        config = {
            "name": results["name"],
            "seed": results["seed"],
            "optim": {"_target_": "torch.optim.SGD", "lr": 0.05},
        }
        write_atomic(folder / "config.yaml", yaml.safe_dump({**config, "loss": {"ce": {}, "kd": {"temperature": 4.0}}}))
        write_json(
            folder / "environment.json",
            {
                "python": "3.12.4",
                "torch": "2.8.0",
                "device": "cpu",
                "cores": 2,
                "git": {"commit": "1f3c9ab", "dirty": False},
            },
        )
        if events:
            write_events(folder / "metrics.jsonl", results)
        write_atomic(
            folder / "student" / "README.md",
            "# student\n\n```python\nimport timm\n\nmodel = timm.create_model('hf_hub:student')\n```\n",
        )
        return folder

    return make


@pytest.fixture
def make_compare(tmp_path: Path) -> Callable[..., Path]:
    """``make_compare(seeds=5, effects={...}, broken=[(method, seed)], **changes)`` writes a compare folder."""

    def make(
        seeds: int = 5,
        effects: dict[str, float] | None = None,
        broken: list[tuple[str, int]] | None = None,
        **changes: Any,
    ) -> Path:
        effects = effects or {
            "ce": 0.0,
            "kd": 0.026,
            "js": 0.02,
            "sinkhorn": 0.004,
            "nkd": 0.024,
            "nd": 0.0,
            "bdkd": -0.03,
        }
        folder = tmp_path / "compare"
        generator = np.random.default_rng(3)
        base = 0.938 + 0.006 * generator.standard_normal(seeds)
        for index, (method, effect) in enumerate(effects.items()):
            for seed in range(seeds):
                value = float(base[seed] + effect + 0.004 * generator.standard_normal())
                cell: dict[str, Any] = {
                    "method": method,
                    "losses": ["ce"] if method == "ce" else ["ce", method],
                    "seed": seed,
                    "metrics": {"accuracy": value, "ece": 0.035 - 0.5 * effect + 0.003 * float(generator.random())},
                    "teacher_metrics": {"accuracy": 0.982, "ece": 0.011},
                    "seconds": 4.0 + 0.8 * index,
                    "status": "ok",
                    "error": None,
                    "run_dir": f"runs/{method}-{seed}",
                }
                if (method, seed) in (broken or []):
                    cell |= {"status": "failed", "error": "loss term 'sinkhorn' became NaN at step 12", "metrics": {}}
                append_jsonl(folder / "results.jsonl", cell)
        about = {
            "command": "kdkit compare experiment=digits",
            "name": "digits",
            "baseline": "ce",
            "primary": "accuracy",
            "higher_is_better": True,
            "methods": list(effects),
            "seeds": list(range(seeds)),
            "data": {"name": "digits", "fingerprint": "3fa9" * 16, "train": 1297, "val": 200, "test": 500},
            "teacher": {"network": "resnet20", "origin": "trained by its own recipe (12.3 s), kept as 3fa9c1"},
            "notes": ["ND takes class means over the training images."],
        }
        write_atomic(folder / "compare.json", json.dumps({**about, **changes}))
        return folder

    return make
