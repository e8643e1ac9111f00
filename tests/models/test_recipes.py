"""Every model recipe builds, runs, and can be picked as student and as teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kdkit.data._base import ImageSpec, LabelledTextSpec, TextSpec
from kdkit.tasks import CausalLM, Classification, Embedding, SequenceClassification

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(path.stem for path in (RECIPES / "model").glob("*.yaml"))
SPEC = "{num_classes: 10, in_chans: 1, image_size: 8, vocab_size: 40, context: 12, steps: null}"
NEEDED = {"timm": ["name=resnet18"], "torchvision": ["name=shufflenet_v2_x0_5"]}
OURS = [
    path for group in ("model", "student", "teacher", "task") for path in sorted((RECIPES / group).glob("[!_]*.yaml"))
]
PRETRAINED = {"hf_causal_lm", "hf_image_classifier", "hf_text_classifier"}
ENCODERS = {"minilm_encoder", "minilm_encoder_l2"}
FRESH = ["pretrained=false", "hidden_size=24", "intermediate_size=24", "num_hidden_layers=1"]
NEEDED |= dict.fromkeys(("bert_base", "bert_l6_h768", "minilm_l6"), FRESH)


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for group in RECIPES.iterdir():
        if group.is_dir():
            (folder / group.name).symlink_to(group)
    head = "defaults:\n  - _self_\n  - task: classification\n  - teacher: resnet56\n  - student: null\n"
    (folder / "config.yaml").write_text(f"{head}spec: {SPEC}\nteacher: null\nstudent: null\n")
    return folder


def composed(config_dir: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return compose("config", list(overrides))


def needed(role: str, name: str, folder: Path) -> list[str]:
    if name in PRETRAINED | ENCODERS:
        return [f"{role}.model.pretrained={folder}"]
    return [f"{role}.model.{setting}" for setting in NEEDED.get(name, [])]


def save_pretrained(name: str, folder: Path) -> None:
    from kdkit.models import hf_causal_lm, hf_image_classifier, hf_sentence_encoder, hf_text_classifier

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    if name == "hf_causal_lm":
        hf_causal_lm(model_type="llama", vocab_size=40, **sizes).save_pretrained(folder)
        return
    if name in ENCODERS:
        deep = {**sizes, "num_hidden_layers": 6}
        hf_sentence_encoder(model_type="bert", vocab_size=40, **deep).save_pretrained(folder)
        return
    if name == "hf_text_classifier":
        hf_text_classifier(model_type="bert", num_classes=10, vocab_size=40, **sizes).save_pretrained(folder)
        return
    from transformers import ViTImageProcessor

    options: dict[str, Any] = {**sizes, "num_classes": 10, "in_chans": 1, "image_size": 8, "patch_size": 4}
    hf_image_classifier(model_type="vit", **options).save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)


def test_there_are_recipes_and_each_can_be_picked_twice() -> None:
    assert len(NAMES) >= 15
    others = {"none", "ema", "cached", "served", "routed", "_train"}
    for role in ("student", "teacher"):
        picked = {path.stem for path in (RECIPES / role).glob("*.yaml")} - others
        assert picked == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_builds_and_runs(config_dir: Path, tmp_path: Path, name: str) -> None:
    if name in PRETRAINED | ENCODERS:
        save_pretrained(name, tmp_path)
    student = composed(config_dir, f"student={name}", *needed("student", name, tmp_path)).student
    teacher = composed(config_dir, f"teacher={name}", *needed("teacher", name, tmp_path)).teacher
    keys = {"model", "weights", "normalization", "input_size"}
    assert set(student) == keys
    assert set(teacher) == {*keys, "ensemble", "shares", "members", "train"}
    assert OmegaConf.to_container(teacher.model) == OmegaConf.to_container(student.model)
    assert set(teacher.train) == {"seed", "epochs", "max_steps", "batch_size", "optim", "scheduler", "data", "engine"}
    module = instantiate(student.model)
    with torch.no_grad():
        if name in ENCODERS:
            vectors = Embedding(LabelledTextSpec(0, 40, 12, 0, measure="cosine"))
            network = vectors.wrap(module).eval()
            ids = torch.randint(2, 40, (2, 12))
            batch = {name: torch.ones_like(ids) for name in ("attention_mask", "token_type_ids")}
            out = vectors.forward(network, {**batch, "input_ids": ids})
            vectors.check_outputs(out, out, {"target": torch.zeros(2, 8)})
        elif "vocab_size" in student.model and "num_classes" in student.model:
            labelled = SequenceClassification(LabelledTextSpec(10, 40, 12, 0))
            network = labelled.wrap(module).eval()
            network.tap({"penultimate": "penultimate", "last": "hidden_states.-1"})
            ids = torch.randint(2, 40, (2, 12))
            names = ("input_ids", "attention_mask", "token_type_ids", "label")
            batch = dict(zip(names, (ids, torch.ones_like(ids), torch.zeros_like(ids), torch.tensor([0, 9]))))
            out = labelled.forward(network, batch)
            labelled.check_outputs(out, out, batch)
            assert out.features["penultimate"].dim() == 2 and out.features["last"].dim() == 3
        elif "vocab_size" in student.model or name == "hf_causal_lm":
            text = CausalLM(TextSpec(40, 12, 0, 1))
            network = text.wrap(module).eval()
            ids = torch.randint(2, 40, (2, 12))
            positions = torch.arange(12).expand(2, 12)
            batch = {"input_ids": ids, "labels": ids, "document_ids": torch.ones_like(ids), "position_ids": positions}
            out = text.forward(network, batch)
            text.check_outputs(out, out, batch)
        else:
            images = Classification(ImageSpec(10, 1, 8, (0.5,), (0.25,)))
            network = images.wrap(module).eval()
            network.tap({"penultimate": "penultimate"})
            batch = {"image": torch.rand(2, 1, 8, 8), "label": torch.zeros(2, dtype=torch.int64)}
            out = images.forward(network, batch)
            images.check_outputs(out, out, batch)
            assert out.features["penultimate"].dim() == 2


def test_no_teacher(config_dir: Path) -> None:
    assert set(composed(config_dir, "teacher=none").teacher) == {"train"}  # without a model it is dropped
    assert composed(config_dir).teacher.model.depth == 56


@pytest.mark.parametrize("name", [path.stem for path in sorted((RECIPES / "task").glob("*.yaml"))])
def test_tasks(config_dir: Path, name: str) -> None:
    specs = {"causal_lm": TextSpec(40, 12, 0, 1), "sequence_classification": LabelledTextSpec(2, 40, 12, 0)}
    specs["embedding"] = LabelledTextSpec(0, 40, 12, 0, measure="cosine")
    spec = specs.get(name, ImageSpec(10, 1, 8, (0.5,), (0.25,)))
    assert instantiate(composed(config_dir, f"task={name}").task, spec).name == name


@pytest.mark.parametrize("path", OURS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_opens_with_the_command_that_uses_it(path: Path) -> None:
    assert any(line.startswith("# kdkit ") for line in path.read_text().splitlines()[:2])
