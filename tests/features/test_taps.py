"""Taps: layers by name, recorded and forgotten."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import ConfigError
from kdkit.features import FeatureTap, find_head, list_layers


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Tapped(nn.Module):
    """A module with a tap of its own, as the wrappers of kdkit are."""

    def __init__(self, module: nn.Module, layers: dict[str, str]) -> None:
        super().__init__()
        self.module = module
        self.tap = FeatureTap(module, layers)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self.tap.recording() as features:
            y = self.module(x)
        return y, dict(features)


def llama(**options: object) -> nn.Module:
    from kdkit.models import hf_causal_lm

    return hf_causal_lm(
        model_type="llama",
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        **options,
    ).eval()


def test_records_outputs_and_the_classifiers_input() -> None:
    module, x = network(), torch.randn(5, 4)
    _, features = Tapped(module, {"first": "0", "last": "penultimate"})(x)
    assert torch.equal(features["first"], module[0](x))
    assert torch.equal(features["last"], module[:2](x))


def test_each_recording_starts_empty_and_keeps_nothing() -> None:
    module = network()
    tap = FeatureTap(module, {"first": "0"})
    with tap.recording() as features:
        module(torch.randn(2, 4))
    old = weakref.ref(features["first"])
    del features
    gc.collect()
    assert old() is None
    module(torch.randn(2, 4))  # outside a recording nothing is recorded
    with tap.recording() as features:
        assert features == {}
        module(torch.randn(3, 4))
    assert features["first"].shape == (3, 8)


def test_gradients_flow_through_a_feature() -> None:
    module = network()
    _, features = Tapped(module, {"last": "penultimate"})(torch.randn(5, 4))
    features["last"].sum().backward()
    assert module[0].weight.grad is not None
    assert module[2].weight.grad is None


def test_remove_takes_the_hooks_off() -> None:
    module = network()
    tap = FeatureTap(module, {"first": "0", "last": "penultimate"})
    assert len(module[0]._forward_hooks) == 1
    assert len(module[2]._forward_pre_hooks) == 1
    tap.remove()
    assert not module[0]._forward_hooks
    assert not module[2]._forward_pre_hooks


def test_a_copy_of_the_network_has_a_tap_of_its_own() -> None:
    first = Tapped(network(), {"last": "penultimate"})
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.module[0].weight.zero_()
    x = torch.randn(2, 4)
    assert not torch.equal(first(x)[1]["last"], second(x)[1]["last"])
    assert torch.equal(second(x)[1]["last"], second.module[:2](x))


def test_unknown_layer_lists_close_names() -> None:
    module = nn.Sequential()
    module.add_module("block1", nn.Linear(2, 2))
    module.add_module("block2", nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"Sequential has no layer 'blok1'; did you mean 'block1'"):
        FeatureTap(module, {"a": "blok1"})
    assert not module.block1._forward_hooks
    with pytest.raises(ConfigError, match=r"did you mean 'penultimate'"):
        FeatureTap(module, {"a": "penultimat"})


def test_a_layer_that_does_not_run_is_named() -> None:
    module = network()
    module.spare = nn.Linear(3, 3)
    tap = FeatureTap(module, {"a": "spare"})
    with pytest.raises(ConfigError, match=r"layer 'spare' of feature 'a' did not run"), tap.recording():
        module[0](torch.randn(2, 4))


def test_a_layer_without_a_tensor_is_named() -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "text"

    module = nn.Sequential(nn.Linear(2, 2))
    module.words = Words()
    tap = FeatureTap(module, {"a": "words"})
    with pytest.raises(ConfigError, match=r"layer 'words' of feature 'a' gives str, not a tensor"), tap.recording():
        module.words(torch.zeros(1))


def test_tuples_and_model_outputs_give_their_first_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[None, Tensor, Tensor]:
            return None, x + 1, x + 2

    module = nn.Sequential(Pair())
    tap = FeatureTap(module, {"a": "0"})
    with tap.recording() as features:
        module(torch.zeros(2))
    assert torch.equal(features["a"], torch.ones(2))
    model = llama()
    tap = FeatureTap(model, {"body": "model", "head": "penultimate"})
    with tap.recording() as features:
        model(torch.randint(0, 20, (2, 5)))
    assert torch.equal(features["body"], features["head"])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", ["in place", "wrapped", "outside"])
def test_compiled_networks_give_the_same_features(backend: str, how: str) -> None:
    torch.compiler.reset()
    x = torch.randn(5, 4)
    plain = Tapped(network(), {"first": "0", "last": "penultimate"})
    tapped = Tapped(network(), {"first": "0", "last": "penultimate"})
    run = tapped
    if how == "in place":
        tapped.module.compile(backend=backend)
    elif how == "wrapped":
        tapped.module = torch.compile(tapped.module, backend=backend)
    else:
        run = torch.compile(tapped, backend=backend)
    for _ in range(2):
        logits, features = run(x)
        expected_logits, expected = plain(x)
        torch.testing.assert_close(logits, expected_logits)
        torch.testing.assert_close(features, expected)
        (features["last"].square().sum() + logits.sum()).backward()
        (expected["last"].square().sum() + expected_logits.sum()).backward()
    grads = [p.grad for p in tapped.parameters()]
    torch.testing.assert_close(grads, [p.grad for p in plain.parameters()])
    torch.compiler.reset()


def test_tap_on_a_compiled_wrapper_finds_the_inner_names() -> None:
    module = torch.compile(network(), backend="eager")
    assert find_head(module)[0] == "2"
    _, features = Tapped(module, {"a": "0"})(torch.randn(2, 4))
    assert features["a"].shape == (2, 8)


def test_hidden_states_are_those_of_transformers() -> None:
    model, ids = llama(), torch.randint(0, 20, (2, 7))
    expected = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    names = {"zero": "hidden_states.0", "one": "hidden_states.1", "end": "hidden_states.3", "minus": "hidden_states.-2"}
    tap = FeatureTap(model, names)
    with tap.recording() as features:
        model(ids, use_cache=False)
    for name, index in (("zero", 0), ("one", 1), ("end", 3), ("minus", 2)):
        torch.testing.assert_close(features[name], expected[index])
    with pytest.raises(ConfigError, match=r"no layer 'hidden_states.4'; did you mean"):
        FeatureTap(model, {"a": "hidden_states.4"})


def test_find_head_asks_the_model_before_it_guesses() -> None:
    from kdkit.models import timm_model, torchvision_model

    assert find_head(timm_model("convnext_atto", num_classes=7, depths=[1, 1, 1, 1], dims=[4, 4, 4, 4]))[0] == "head.fc"
    assert find_head(torchvision_model("mobilenet_v3_small", num_classes=7))[0] == "classifier.3"
    assert find_head(llama())[0] == "lm_head"
    assert find_head(network())[0] == "2"


def test_find_head_without_a_linear_layer() -> None:
    with pytest.raises(ConfigError, match=r"'penultimate' needs a linear classifier, and Sequential has none"):
        find_head(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_list_layers() -> None:
    module = network().train()
    module.spare = nn.Linear(1, 1)
    layers = {layer.name: layer for layer in list_layers(module[:3], torch.randn(2, 4))}
    assert layers["0"].shape == (2, 8)
    assert layers["1"].type == "ReLU"
    assert layers["penultimate"] == ("penultimate", "input of Linear", (2, 8))
    assert module.training
    assert not module[0]._forward_hooks
    by_function = list_layers(module[:3], lambda: module[0](torch.randn(3, 4)))
    assert [layer.shape for layer in by_function] == [(3, 8), None, None, None]


def test_list_layers_takes_keyword_inputs() -> None:
    names = [layer.name for layer in list_layers(llama(), {"input_ids": torch.zeros(1, 3, dtype=torch.int64)})]
    assert "model.layers.0" in names
    assert names[-1] == "penultimate"
