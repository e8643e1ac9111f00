"""Weight files: what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from kdkit.errors import CheckpointError
from kdkit.models import convert_pickle, hf_causal_lm, load_weights, small_cnn

LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def network(classes: int = 5, width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return small_cnn(width, num_classes=classes)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("place", ["file", "folder", "other name", "run"])
def test_file_folder_run(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "student" if place == "run" else tmp_path
    folder.mkdir(exist_ok=True)
    name = "best.safetensors" if place == "other name" else "model.safetensors"
    saved, other = network(), network(seed=1)
    save_model(saved, str(folder / name))
    load_weights(other, folder / name if place == "file" else tmp_path)
    assert equal(saved, other)


def test_shards(tmp_path: Path) -> None:
    saved, other = network(), network(seed=1)
    items = list(saved.state_dict().items())
    parts = {"a.safetensors": dict(items[:3]), "b.safetensors": dict(items[3:])}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    load_weights(other, tmp_path)
    assert equal(saved, other)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard b.safetensors that its index names"):
        load_weights(other, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index.json is damaged"):
        load_weights(other, tmp_path)


def test_compiled_networks_load_too(tmp_path: Path) -> None:
    saved, other = network(), network(seed=1)
    save_model(saved, str(tmp_path / "model.safetensors"))
    load_weights(torch.compile(other, backend="eager"), tmp_path)
    assert equal(saved, other)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_folder(tmp_path: Path, tied: bool) -> None:
    saved, other = (hf_causal_lm(**LLAMA, tie_word_embeddings=tied) for _ in range(2))
    saved.save_pretrained(tmp_path)
    load_weights(other, tmp_path)
    assert equal(saved, other)
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied


def test_transformers_shards(tmp_path: Path) -> None:
    saved, other = hf_causal_lm(**LLAMA), hf_causal_lm(**LLAMA)
    saved.save_pretrained(tmp_path, max_shard_size="1KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    load_weights(other, tmp_path)
    assert equal(saved, other)


def test_transformers_folder_of_another_network(tmp_path: Path) -> None:
    hf_causal_lm(**LLAMA).save_pretrained(tmp_path)
    bigger = hf_causal_lm(**{**LLAMA, "vocab_size": 30})
    with pytest.raises(CheckpointError, match=r"is \[20, 8\] in the file and \[30, 8\] in the network; .*vocab_size"):
        load_weights(bigger, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"can not be read by transformers"):
        load_weights(bigger, tmp_path)


def test_merged_weights_into_a_network_with_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    saved = hf_causal_lm(**LLAMA)
    saved.save_pretrained(tmp_path)
    other = hf_causal_lm(**LLAMA, lora={"r": 2})
    load_weights(other, tmp_path)
    ids = torch.arange(5)[None]
    torch.testing.assert_close(other.eval()(ids).logits, saved.eval()(ids).logits)


def test_another_number_of_classes(tmp_path: Path) -> None:
    save_model(network(classes=100), str(tmp_path / "model.safetensors"))
    other = network()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'classifier.weight' is \[100, 16\] in the file and \[5, 16\] .*100"):
        load_weights(other, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_another_network(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"to this Sequential: 20 missing \(.*, \.\.\.\) and 1 not known \(a\)"):
        load_weights(network(), tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    torch.save(network().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"is a pickle, which can run code when it is loaded; convert it"):
        load_weights(network(), path)
    with pytest.raises(CheckpointError, match=f"holds no model.safetensors; net{suffix} is a pickle, convert it"):
        load_weights(network(), tmp_path)


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no weight file .*nothing"):
        load_weights(network(), tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors; name the .safetensors file itself"):
        load_weights(network(), tmp_path)
    path = tmp_path / "model.safetensors"
    save_model(network(), str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"the weight file .*model.safetensors is damaged"):
        load_weights(network(), path)


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_convert(tmp_path: Path, key: str | None) -> None:
    saved, other = network(), network(seed=1)
    weights = {f"module.{name}": value for name, value in saved.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "net.pth")
    written = convert_pickle(tmp_path / "net.pth")
    assert written == tmp_path / "net.safetensors"
    load_weights(other, written)
    assert equal(saved, other)
    assert convert_pickle(tmp_path / "net.pth", tmp_path / "b.safetensors").name == "b.safetensors"


def test_convert_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no file .*x.pth to convert"):
        convert_pickle(tmp_path / "x.pth")
    torch.save(network(), tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"can not be read without running its code"):
        convert_pickle(tmp_path / "whole.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"holds no tensors by name"):
        convert_pickle(tmp_path / "empty.pth")
    assert not list(tmp_path.glob("*.safetensors*"))
