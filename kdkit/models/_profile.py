"""What a network costs: parameters, floating-point operations, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

__all__ = ["count_flops", "count_parameters", "measure_latency"]

Inputs = Mapping[str, Tensor] | Callable[[], object]


def count_parameters(module: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters; shared ones count once.

    Args:
        module: any module.
        trainable: count only those that require a gradient.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def count_flops(module: nn.Module, inputs: Inputs) -> int | None:
    """Floating-point operations of one forward pass (a multiply-add is two), or ``None`` if they can not be counted.

    Counted by ``torch.utils.flop_counter``: matrix products, convolutions and attention.

    Args:
        module: run in evaluation mode; its mode is restored.
        inputs: what the module is called with, or a function that runs it, such as
            ``lambda: task.forward(network, example)``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    training = module.training
    try:
        module.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _run(module, inputs)
        return int(counter.get_total_flops())
    except Exception:  # an operator without a formula, a kernel that the counter can not see: no number then
        return None
    finally:
        module.train(training)


def measure_latency(module: nn.Module, inputs: Inputs, *, repeats: int = 20, warmup: int = 3) -> float:
    """Median time of one forward pass in milliseconds, in evaluation mode on the device where the module is.

    Args:
        module: its training mode is restored.
        inputs: what the module is called with, or a function that runs it.
        repeats: timed passes.
        warmup: passes before these.
    """
    parameter = next(module.parameters(), None)
    cuda = parameter is not None and parameter.is_cuda
    training = module.training
    times = []
    try:
        module.eval()
        with torch.no_grad():
            for index in range(warmup + repeats):
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                _run(module, inputs)
                if cuda:
                    torch.cuda.synchronize()
                if index >= warmup:
                    times.append(time.perf_counter() - start)
    finally:
        module.train(training)
    return 1000.0 * median(times)


def _run(module: nn.Module, inputs: Inputs) -> None:
    if callable(inputs):
        inputs()
    else:
        module(inputs)
