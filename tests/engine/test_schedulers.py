"""Learning-rate schedules, optimizers and averaged weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdkit.engine import schedulers
from kdkit.engine.averaging import WeightAverage
from kdkit.engine.optim import parameter_groups, timm_optimizer
from kdkit.errors import ConfigError, InputError


def rates(make: object, steps: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make(optimizer, steps, **options)  # type: ignore[operator]
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_cosine_starts_at_the_base_rate_and_falls_along_half_a_cosine() -> None:
    values = rates(schedulers.cosine, 10, min_factor=0.1)
    expected = [2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 10))) for step in range(10)]
    assert values == pytest.approx(expected)


def test_warmup_as_share_and_as_steps() -> None:
    assert rates(schedulers.constant, 10, warmup=0.4) == pytest.approx([0.5, 1.0, 1.5, *[2.0] * 7])
    assert rates(schedulers.constant, 10, warmup=4) == rates(schedulers.constant, 10, warmup=0.4)


def test_linear_and_multistep() -> None:
    assert rates(schedulers.linear, 4) == pytest.approx([2.0, 1.5, 1.0, 0.5])
    values = rates(schedulers.multistep, 240)
    changes = [step for step in range(1, 240) if values[step] != values[step - 1]]
    assert changes == [150, 180, 210]
    assert values[-1] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (schedulers.cosine, {"warmup": -1}, "cosine: warmup must be a share"),
        (schedulers.cosine, {"warmup": 1.5}, "got 1.5"),
        (schedulers.linear, {"min_factor": 2.0}, r"linear: min_factor must lie in \[0, 1\], got 2.0"),
        (schedulers.multistep, {"milestones": [150]}, r"milestones must be shares of the training in \(0, 1\)"),
    ],
)
def test_bad_options_are_refused(make: object, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rates(make, 10, **options)


def test_parameter_groups() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert len(parameter_groups(module)) == 1
    decayed, plain = parameter_groups(module, decay_all=False)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2)]
    assert len(plain["params"]) == 3
    assert plain["weight_decay"] == 0.0
    with pytest.raises(ConfigError, match="no trainable parameter"):
        parameter_groups(module.requires_grad_(False))


def test_timm_optimizers_by_name() -> None:
    optimizer = timm_optimizer([nn.Parameter(torch.zeros(2))], opt="lion", lr=1e-3)
    assert type(optimizer).__name__ == "Lion"
    with pytest.raises(ConfigError, match="names no timm optimizer: 'lionn'; did you mean 'lion'"):
        timm_optimizer([nn.Parameter(torch.zeros(2))], opt="lionn")


def test_the_average_follows_its_formula_and_swaps_cleanly() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    average = WeightAverage(module, 0.5)
    start = module[0].weight.detach().clone()
    expected = start.clone()
    for step in range(1, 4):
        with torch.no_grad():
            module[0].weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (start + step)
    torch.testing.assert_close(average.shadow["0.weight"], expected)
    own = module[0].weight.detach().clone()
    with average.swapped():
        torch.testing.assert_close(module[0].weight.detach(), expected)
    assert torch.equal(module[0].weight, own)
    assert average.shadow["1.num_batches_tracked"].dtype == torch.int64
