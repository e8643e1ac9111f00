"""A network as teacher: frozen, in evaluation mode, and identified."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit.data._base import ImageSpec
from kdkit.models import VisionNetwork, hf_causal_lm, small_cnn
from kdkit.models._language import LanguageNetwork
from kdkit.tasks import Classification
from kdkit.teachers import LiveTeacher, Teacher
from kdkit.teachers.live import network_identity

TASK = Classification(ImageSpec(3, 1, 8, (0.5,), (0.25,)))
BATCH = {"image": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def network(seed: int = 0, **options: object) -> VisionNetwork:
    torch.manual_seed(seed)
    return TASK.wrap(small_cnn(4, num_classes=3), name="cnn", **options)  # type: ignore[arg-type]


def test_answers_without_gradient_in_evaluation_mode() -> None:
    inner = network().train()
    teacher = LiveTeacher(inner, TASK)
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    first = teacher(BATCH)
    inner.train()  # whoever does this: the teacher does not stay so
    second = teacher(BATCH)
    assert torch.equal(first.logits, second.logits)
    assert not first.logits.requires_grad
    assert not any(p.requires_grad for p in inner.parameters())
    assert all(torch.equal(value, before[name]) for name, value in inner.state_dict().items())
    assert isinstance(teacher, Teacher)
    assert not isinstance(teacher, nn.Module)
    assert teacher.name == "cnn"


def test_the_answer_can_enter_a_graph() -> None:
    logits = LiveTeacher(network(), TASK)(BATCH).logits
    weight = torch.ones(3, requires_grad=True)
    (logits * weight).sum().backward()
    torch.testing.assert_close(weight.grad, logits.sum(0))


def test_taps() -> None:
    teacher = LiveTeacher(network(), TASK)
    teacher.tap({"penultimate": "penultimate"})
    assert teacher(BATCH).features["penultimate"].shape == (4, 16)


@pytest.mark.parametrize("tapped", [False, True])
def test_compiled(tapped: bool) -> None:
    torch.compiler.reset()
    teacher = LiveTeacher(network(), TASK)
    if tapped:
        teacher.tap({"a": "penultimate"})
    expected = teacher(BATCH)
    identity = teacher.identity
    teacher.compile(backend="eager")
    answer = teacher(BATCH)
    torch.testing.assert_close(answer.logits, expected.logits)
    torch.testing.assert_close(answer.features, expected.features)
    assert network_identity(teacher.network) == identity
    torch.compiler.reset()


def test_to_keeps_the_identity() -> None:
    teacher = LiveTeacher(network(), TASK)
    expected = LiveTeacher(network(), TASK)
    assert teacher.to("cpu", torch.bfloat16) is teacher
    assert teacher.identity == expected.identity
    logits = teacher(BATCH).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected(BATCH).logits, rtol=0.1, atol=0.05)


def test_identity_sees_what_changes_an_answer() -> None:
    same = [network_identity(network()) for _ in range(2)]
    assert same[0] == same[1]
    assert len(same[0]) == 64
    changed = network()
    with torch.no_grad():
        changed.module.classifier.bias[0] += 1e-6  # type: ignore[index, union-attr]
    buffers = network()
    buffers.module.block1.norm.running_mean[0] += 1  # type: ignore[index, union-attr]
    others = [changed, buffers, network(1), network(normalization="none"), network(input_size=16)]
    identities = {network_identity(other) for other in others}
    assert len(identities) == len(others)
    assert same[0] not in identities


def test_identity_sees_structure_and_configuration() -> None:
    class Plus(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    torch.manual_seed(0)
    plain = nn.Linear(2, 2)
    other = Plus(2, 2)
    other.load_state_dict(plain.state_dict())
    assert network_identity(VisionNetwork(plain)) != network_identity(VisionNetwork(other))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    models = [hf_causal_lm(model_type="llama", vocab_size=9, **sizes, rms_norm_eps=eps) for eps in (1e-5, 1e-6)]
    models[1].load_state_dict(models[0].state_dict())
    assert len({network_identity(LanguageNetwork(model)) for model in models}) == 2


def test_identity_of_half_precision_weights() -> None:
    half = network()
    half.module.to(torch.bfloat16)
    assert network_identity(half) != network_identity(network())
