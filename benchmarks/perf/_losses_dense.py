"""Dense divergences between the logits of two language models, a quarter of the positions masked."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.perf._cases import Cases, Maker, Step, generator, learning

__all__ = ["CASES"]

TOKENS, VOCABULARY = 2048, 32000
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``loss(student_logits, teacher_logits, mask)``: the mean over the positions that count."""


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher, mask."""
    rng = generator()
    logits = [2 * torch.randn(TOKENS, VOCABULARY, generator=rng) for _ in range(2)]
    return logits[0].to(dtype), logits[1].to(dtype), torch.rand(TOKENS, generator=rng) >= 0.25


def of(loss: Callable[[], Loss], dtype: torch.dtype = torch.float32, compared: bool = True) -> Maker:
    """A maker of ``loss()`` on these inputs."""

    def make() -> Step:
        function = loss()
        student, teacher, mask = inputs(dtype)
        return learning(lambda value: function(value, teacher, mask), student, compared)

    return make


def ours(name: str, **options: Any) -> Callable[[], Loss]:
    """A function of kdkit by its name."""

    def load() -> Loss:
        import kdkit.losses

        function = getattr(kdkit.losses, name)
        return lambda student, teacher, mask: function(student, teacher, mask=mask, **options)

    return load


# ---- plain torch ---------------------------------------------------------------------------------------------------


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the positions that count."""
    return (values * mask).sum() / mask.sum()


def forward_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student)."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def reverse_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher)."""
    return forward_rows(teacher, student)


def js_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """The Jensen-Shannon divergence."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    kl = partial(F.kl_div, log_m, reduction="none", log_target=True)
    return (0.5 * kl(log_p) + 0.5 * kl(log_q)).sum(-1)


def skew_rows(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> Tensor:
    """KL(teacher || alpha teacher + (1 - alpha) student)."""
    log_p, q = F.log_softmax(teacher, -1), F.softmax(student, -1)
    p = log_p.exp()
    return (p * (log_p - (alpha * p + (1 - alpha) * q).log())).sum(-1)


def total_variation_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the L1 distance."""
    return (F.softmax(student, -1) - F.softmax(teacher, -1)).abs().sum(-1) / 2


def hellinger_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared distance of the roots."""
    return (F.softmax(student, -1).sqrt() - F.softmax(teacher, -1).sqrt()).square().sum(-1) / 2


def chi_square_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """Pearson's."""
    p, q = F.softmax(teacher, -1), F.softmax(student, -1)
    return ((p - q) ** 2 / q).sum(-1)


Rows = Callable[[Tensor, Tensor], Tensor]


def plain(rows: Rows) -> Callable[[], Loss]:
    """Everything, then the mask."""
    return lambda: lambda student, teacher, mask: mean(rows(student, teacher), mask)


def mask_first(rows: Rows) -> Callable[[], Loss]:
    """The positions that count, then the formula."""
    return lambda: lambda student, teacher, mask: rows(student[mask], teacher[mask]).mean()


def compiled(rows: Rows) -> Callable[[], Loss]:
    """The plain form through torch.compile."""
    return lambda: torch.compile(plain(rows)())


# ---- peers ---------------------------------------------------------------------------------------------------------


def labels_of(mask: Tensor) -> Tensor:
    """-100 where a position does not count."""
    return torch.where(mask, 0, -100)


def torchtune_module(name: str) -> Any:
    """A module of torchtune, from its own file: the package as a whole imports others."""
    package = importlib.util.find_spec("torchtune")
    if package is None or package.origin is None:
        raise ImportError("torchtune")
    path = Path(package.origin).parent / "modules" / "loss" / "kd_losses.py"
    spec = importlib.util.spec_from_file_location("torchtune_kd_losses", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


def torchtune(name: str) -> Callable[[], Loss]:
    """A module of torchtune on these inputs."""

    def load() -> Loss:
        loss = torchtune_module(name)
        return lambda student, teacher, mask: loss(student, teacher, labels_of(mask))

    return load


def trl(beta: float) -> Callable[[], Loss]:
    """The generalised JSD of TRL's trainer; 0 and 1 are its forward and reverse KL."""

    def load() -> Loss:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from trl.experimental.gkd import GKDTrainer

        return lambda student, teacher, mask: GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], labels_of(mask)[None], beta=beta
        )

    return load


def liger(beta: float) -> Callable[[], Loss]:
    """The divergence inside of Liger-Kernel's loss that is fused with the head, on logits."""

    def load() -> Loss:
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

        loss = LigerFusedLinearJSDFunction.distillation_loss_fn
        return lambda student, teacher, mask: loss(student, teacher, beta, labels_of(mask)) / mask.sum()

    return load


# ---- limits --------------------------------------------------------------------------------------------------------


def copying() -> Step:
    """Read student and teacher, write a gradient, into memory that is warm."""
    student, teacher, _ = inputs()
    gradient = torch.zeros_like(student)

    def step() -> None:
        torch.add(student, teacher, out=gradient)

    return step


def exponentials() -> Step:
    """One exponential per entry and side that counts, in the cache."""
    student = inputs()[0][:64].clamp_(max=0.0)
    room = torch.empty_like(student)

    def step() -> None:
        for _ in range(2 * TOKENS * 3 // 4 // 64):
            torch.exp2(student, out=room)

    return step


LIMITS: dict[str, Maker] = {"limit, memory": lambda: copying(), "limit, exponentials": lambda: exponentials()}
SIZE = f"{TOKENS} x {VOCABULARY}"


def _case(function: str, rows: Rows, peers: dict[str, Callable[[], Loss]], **options: Any) -> dict[str, Maker]:
    textbook = {"plain": plain(rows), "plain, mask first": mask_first(rows), "plain, torch.compile": compiled(rows)}
    contenders = {"kdkit": ours(function, **options)} | textbook
    entropy_left_out = ("torchtune",)
    return (
        {name: of(loss) for name, loss in contenders.items()}
        | {name: of(loss, compared=name not in entropy_left_out) for name, loss in peers.items()}
        | LIMITS
    )


def _half(rows: Rows, function: str) -> dict[str, Maker]:
    contenders = {"kdkit": ours(function), "plain": plain(rows), "plain, mask first": mask_first(rows)}
    return {name: of(loss, torch.bfloat16, compared=False) for name, loss in contenders.items()}


CASES: Cases = {
    f"forward KL, {SIZE}": _case(
        "kl_loss",
        forward_rows,
        {"torchtune": torchtune("ForwardKLLoss"), "TRL": trl(0.0), "Liger-Kernel": liger(0.0)},
    ),
    f"reverse KL, {SIZE}": _case(
        "reverse_kl_loss",
        reverse_rows,
        {"torchtune": torchtune("ReverseKLLoss"), "TRL": trl(1.0), "Liger-Kernel": liger(1.0)},
    ),
    f"JSD, {SIZE}": _case("js_loss", js_rows, {"TRL": trl(0.5), "Liger-Kernel": liger(0.5)}),
    f"skewed KL, {SIZE}": _case("skew_kl_loss", skew_rows, {}),
    f"total variation, {SIZE}": _case("total_variation_loss", total_variation_rows, {}),
    f"Hellinger, {SIZE}": _case("hellinger_loss", hellinger_rows, {}),
    f"chi-square (differentiated by torch), {SIZE}": _case("chi_square_loss", chi_square_rows, {}),
    f"forward KL, bfloat16, {SIZE}": _half(forward_rows, "kl_loss"),
}
