"""Exported students, loaded in a fresh process that never imports kdkit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import LabelledTexts
from kdkit.data._base import ImageSpec, TextSpec
from kdkit.data._labelled_texts import Example
from kdkit.errors import ConfigError
from kdkit.models import (
    export_student,
    hf_causal_lm,
    hf_image_classifier,
    hf_text_classifier,
    load_weights,
    small_cnn,
    timm_model,
)
from kdkit.tasks import CausalLM, Classification, SequenceClassification

NAMES = ("zero", "one", "two")
SPEC = ImageSpec(3, 1, 8, (0.5,), (0.25,), class_names=NAMES)
TASK = Classification(SPEC)
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 4}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
NORMALISE = (
    "m, s = (torch.tensor(config[k])[None, :, None, None] for k in ('mean', 'std'))\n"
    "assert config['input_size'] == (1, 8, 8), config\n"
    "assert list(model.pretrained_cfg['label_names']) == ['zero', 'one', 'two']\n"
    "x = (x - m) / s\n"
)
PROCESS = (
    "pixels = [i.mul(255).round().to(torch.uint8).numpy() for i in x]\n"
    "seen = processor(pixels, return_tensors='pt', input_data_format='channels_first')['pixel_values']\n"
    "x = (x - 0.5) / 0.25\n"
    "assert (seen - x).abs().max() < 0.02\n"
    "assert model.config.id2label[2] == 'two'\n"
)


def loads_without_kdkit(folder: Path, snippet: str, x: Tensor, y: Tensor, between: str = "") -> None:
    torch.save((x, y), folder.parent / "io.pt")
    code = (
        f"{snippet}\nimport sys, torch\nx, y = torch.load({str(folder.parent / 'io.pt')!r})\n{between}"
        "out = model(x)\nout = getattr(out, 'logits', out)\ntorch.testing.assert_close(out, y, rtol=1e-4, atol=1e-5)\n"
        "assert 'kdkit' not in sys.modules\nprint('same')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


BUILDERS: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("torch.export", lambda: small_cnn(4, num_classes=3), ""),
    ("timm", lambda: timm_model("resnet18", num_classes=3, in_chans=1, channels=[4, 8, 8, 8]), NORMALISE),
    (
        "timm",
        lambda: timm_model(
            "vit_tiny_patch16_224",
            num_classes=3,
            in_chans=1,
            img_size=8,
            patch_size=4,
            embed_dim=8,
            depth=1,
            num_heads=2,
        ),
        NORMALISE,
    ),
    (
        "transformers",
        lambda: hf_image_classifier(model_type="vit", num_classes=3, in_chans=1, image_size=8, **VIT),
        PROCESS,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "build", "between"), BUILDERS, ids=["cnn", "timm cnn", "timm vit", "hf vit"])
def test_images(tmp_path: Path, form: str, build: Callable[[], nn.Module], between: str) -> None:
    network = TASK.wrap(build(), name="s").train()
    network.eval()
    logits = network({"image": IMAGES}).logits.detach()
    network.train()
    facts = export_student(network, tmp_path / "s", spec=SPEC, example={"image": IMAGES[:1]}, metadata={"name": "run"})
    assert network.training
    assert facts["format"] == form
    assert set(facts["files"]) >= {"model.safetensors", "kdkit.json"}
    assert facts["bytes"] == (tmp_path / "s" / "model.safetensors").stat().st_size
    note = json.loads((tmp_path / "s" / "kdkit.json").read_text())
    assert note == {"format": form, "network": "s", "name": "run"}
    loads_without_kdkit(tmp_path / "s", facts["snippet"], IMAGES, logits, between)
    again = build()
    load_weights(again, tmp_path / "s")
    torch.testing.assert_close(TASK.wrap(again).eval()({"image": IMAGES}).logits, logits)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 2, "init_lora_weights": False}], ids=["plain", "lora"])
def test_text(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    if lora:
        pytest.importorskip("peft")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    spec = TextSpec(20, 8, 0, 1, tokenizer=tokenizer)
    task = CausalLM(spec)
    network = task.wrap(hf_causal_lm(**LLAMA, tie_word_embeddings=True, lora=lora)).eval()
    ids = torch.arange(16).view(2, 8)
    batch = {"input_ids": ids, "document_ids": torch.ones_like(ids), "position_ids": torch.arange(8).expand(2, 8)}
    inputs = task.inputs(network, batch)
    logits = network(inputs).logits.detach()
    facts = export_student(network, tmp_path / "s", spec=spec, example=inputs)
    assert facts["format"] == "transformers"
    torch.testing.assert_close(network(inputs).logits, logits)  # merging adapters leaves the student alone
    check = "assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 1\n"
    loads_without_kdkit(tmp_path / "s", facts["snippet"], ids[:, :-1], logits, check)


def test_compiled_and_tapped_students(tmp_path: Path) -> None:
    torch.compiler.reset()
    network = TASK.wrap(small_cnn(4, num_classes=3)).eval()
    network.tap({"a": "penultimate"})
    network.module.compile(backend="eager")
    logits = network({"image": IMAGES}).logits
    facts = export_student(network, tmp_path / "s", spec=SPEC, example={"image": IMAGES[:1]})
    assert facts["format"] == "torch.export"
    program = torch.export.load(tmp_path / "s" / "model.pt2").module()
    torch.testing.assert_close(program(IMAGES), logits)
    torch.testing.assert_close(program(IMAGES[:1]), logits[:1])
    torch.compiler.reset()


def test_the_program_resizes_and_normalises(tmp_path: Path) -> None:
    network = TASK.wrap(small_cnn(4, num_classes=3), input_size=12).eval()
    export_student(network, tmp_path / "s", spec=SPEC, example={"image": IMAGES})
    program = torch.export.load(tmp_path / "s" / "model.pt2").module()
    torch.testing.assert_close(program(IMAGES), network({"image": IMAGES}).logits)


def test_a_module_for_one_image_only(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.reshape(1, 64))

    facts = export_student(TASK.wrap(One()), tmp_path / "s", spec=SPEC, example={"image": IMAGES[:1]})
    assert facts["format"] == "torch.export"
    assert "[1, 1, 8, 8]" in facts["snippet"]


def test_a_module_that_can_not_be_traced(tmp_path: Path) -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)) if float(x.sum()) > 0 else self.linear(-x.flatten(1))

    facts = export_student(TASK.wrap(Moody()), tmp_path / "s", spec=SPEC, example={"image": IMAGES[:1]})
    assert facts["format"] == "weights"
    assert set(facts["files"]) == {"kdkit.json", "model.safetensors"}
    assert "build your own Moody here" in facts["snippet"]


def test_options_that_timm_could_not_read_back(tmp_path: Path) -> None:
    network = timm_model("resnet18", num_classes=3, in_chans=1, channels=[4, 8, 8, 8])
    network.fc = nn.Linear(8, 3, bias=False)
    facts = export_student(TASK.wrap(network), tmp_path / "s", spec=SPEC, example={"image": IMAGES})
    assert facts["format"] == "torch.export"
    assert "config.json" not in facts["files"]


def test_again_into_the_same_folder_and_never_over_other_files(tmp_path: Path) -> None:
    network = TASK.wrap(small_cnn(4, num_classes=3))
    for _ in range(2):
        export_student(network, tmp_path / "s", spec=SPEC, example={"image": IMAGES})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(
        ConfigError, match=r"mine holds other files, and an export replaces its folder; choose an empty"
    ):
        export_student(network, tmp_path / "mine", spec=SPEC, example={"image": IMAGES})
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "s"]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_text_classifier(tmp_path: Path, kind: str) -> None:
    """The exported tokenizer writes what the student was trained on, and no more than it takes."""
    examples = [
        Example(text, number % 2, "so they say") for number, text in enumerate(["rain", "snow and hail", "wind"])
    ]
    data = LabelledTexts({"train": examples}, name="weather", class_names=("wet", "dry"), vocab_size=280, context=32)
    task = SequenceClassification(data.spec)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    network = task.wrap(hf_text_classifier(num_classes=2, model_type=kind, vocab_size=data.spec.vocab_size, **sizes))
    batch = next(iter(data.batches("train", 3, train=False)))
    with torch.no_grad():
        logits = task.forward(network.eval(), batch).logits
    inputs = task.inputs(network, task.example(batch))
    facts = export_student(network, tmp_path / "out", spec=data.spec, example=inputs)
    assert facts["format"] == "transformers"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "wet", "1": "dry"} and config["pad_token_id"] == data.spec.pad_token_id
    texts = [example.text for example in examples]
    between = (
        f"texts, pairs = {texts!r}, ['so they say'] * 3\n"
        "x = tokenizer(texts, pairs, truncation=True, padding=True, return_tensors='pt')\n"
        "call, model = model, lambda rows: call(**rows)\n"
    )
    loads_without_kdkit(tmp_path / "out", facts["snippet"], torch.zeros(1), logits, between)
    again = task.wrap(hf_text_classifier(num_classes=2, model_type=kind, vocab_size=data.spec.vocab_size, **sizes))
    load_weights(again.module, tmp_path / "out")
    torch.testing.assert_close(task.forward(again.eval(), batch).logits, logits)
