"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from kdkit.data._base import Batch
from kdkit.errors import ConfigError
from kdkit.outputs import ModelOutput
from kdkit.teachers import EnsembleTeacher, Teacher


class Says(Teacher):
    """Answers the same logits to everything."""

    def __init__(self, logits: Tensor, identity: str = "a") -> None:
        self.logits, self._identity = logits, identity
        self.tapped: dict[str, str] = {}
        self.moved: list[object] = []

    def __call__(self, batch: Batch) -> ModelOutput:
        return ModelOutput(self.logits, dict.fromkeys(self.tapped, self.logits))

    @property
    def identity(self) -> str:
        return self._identity

    def tap(self, layers: Mapping[str, str]) -> None:
        self.tapped = dict(layers)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Says:
        self.moved.append((device, dtype))
        return self

    def compile(self, **options: object) -> None:
        self.moved.append(options)


def logits(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5)])
def test_probabilities_are_averaged(shape: tuple[int, ...]) -> None:
    members = [logits(seed, *shape) for seed in range(3)]
    answer = EnsembleTeacher([Says(member) for member in members])({}).logits
    mean = torch.stack([member.softmax(-1) for member in members]).mean(0)
    torch.testing.assert_close(answer.softmax(-1), mean)
    torch.testing.assert_close(answer.exp().sum(-1), torch.ones(shape[:-1]))


def test_logits_are_averaged() -> None:
    members = [logits(seed, 4, 5) for seed in range(3)]
    answer = EnsembleTeacher([Says(member) for member in members], "logits")({}).logits
    torch.testing.assert_close(answer, torch.stack(members).mean(0))


@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_shares_weigh_the_members(combine: str) -> None:
    members = [logits(seed, 4, 5) for seed in range(3)]
    says = [Says(member) for member in members]
    answer = EnsembleTeacher(says, combine, [1, 2, 5])({}).logits  # type: ignore[arg-type]
    shares = [0.125, 0.25, 0.625]
    if combine == "probs":
        mean = sum(share * member.softmax(-1) for share, member in zip(shares, members, strict=True))
    else:
        mean = sum(share * member for share, member in zip(shares, members, strict=True)).softmax(-1)  # type: ignore[union-attr]
    torch.testing.assert_close(answer.softmax(-1), mean)
    plain = EnsembleTeacher(says).identity
    assert EnsembleTeacher(says, shares=[2, 2, 2]).identity == plain != EnsembleTeacher(says, shares=[1, 2, 2]).identity
    with pytest.raises(ConfigError, match=r"one number above 0 for each of the 3 teachers, got \[1, 0, 2\]"):
        EnsembleTeacher(says, shares=[1, 0, 2])
    with pytest.raises(ConfigError, match=r"for each of the 3 teachers, got \[1, 2\]"):
        EnsembleTeacher(says, shares=[1, 2])


def test_extremes_stay_finite_and_half_precision_is_summed_in_float32() -> None:
    a, b = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    answer = EnsembleTeacher([Says(a), Says(b)])({}).logits
    torch.testing.assert_close(answer.softmax(-1), torch.tensor([[0.5, 0.5]]))
    half = EnsembleTeacher([Says(a.bfloat16()), Says(b.bfloat16())], "logits")({}).logits
    assert half.dtype == torch.float32


def test_a_banned_class_stays_banned() -> None:
    banned = torch.tensor([[0.0, 0.0, float("-inf")]])
    answer = EnsembleTeacher([Says(banned), Says(banned)])({}).logits
    assert torch.isneginf(answer[0, 2])
    torch.testing.assert_close(answer.softmax(-1), torch.tensor([[0.5, 0.5, 0.0]]))


def test_one_member_is_that_member() -> None:
    member = Says(logits(0, 4, 5), "x")
    ensemble = EnsembleTeacher([member])
    ensemble.tap({"a": "penultimate"})
    answer = ensemble({})
    assert answer.logits is member.logits
    assert list(answer.features) == ["a"]
    assert ensemble.identity == "x"


def test_features_of_several_are_refused() -> None:
    ensemble = EnsembleTeacher([Says(logits(0, 4, 5)), Says(logits(1, 4, 5))])
    ensemble.tap({})
    with pytest.raises(
        ConfigError, match=r"features \(nd\) can not be taken from an ensemble of 2 teachers; use losses"
    ):
        ensemble.tap({"nd": "penultimate"})


def test_identity_depends_on_members_order_and_rule() -> None:
    one, two = Says(logits(0, 1, 2), "1"), Says(logits(1, 1, 2), "2")
    identities = {
        EnsembleTeacher([one, two]).identity,
        EnsembleTeacher([one, two], "logits").identity,
        EnsembleTeacher([one, two, two]).identity,
        one.identity,
    }
    assert len(identities) == 4
    assert EnsembleTeacher([one, two]).identity == EnsembleTeacher([one, two]).identity


def test_moves_and_compiles_all() -> None:
    members = [Says(logits(0, 1, 2)), Says(logits(1, 1, 2))]
    ensemble = EnsembleTeacher(members)
    assert ensemble.to("cpu", torch.float16) is ensemble
    ensemble.compile(backend="eager")
    assert all(member.moved == [("cpu", torch.float16), {"backend": "eager"}] for member in members)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"an ensemble needs at least one teacher, got none"):
        EnsembleTeacher([])
    with pytest.raises(ConfigError, match=r"combine must be 'probs' or 'logits', got 'prob'; did you mean 'probs'"):
        EnsembleTeacher([Says(logits(0, 1, 2))], "prob")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"equally many classes, got 5 and 6 \(member 2\)"):
        EnsembleTeacher([Says(logits(0, 4, 5)), Says(logits(0, 4, 6))])({})
