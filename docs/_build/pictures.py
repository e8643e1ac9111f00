"""Pictures of the losses for the pages of docs/losses: ``make pictures`` writes them to docs/assets/losses.

``python docs/_build/pictures.py [NAME ...]`` writes some of them. A picture is a function of no arguments that returns
a figure, registered with ``@picture``; most are one call of :func:`panels` with a list of :class:`Curve`.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from panels import STYLE, VALUE, Curve, panels
from torch import Tensor

from kdkit import losses

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "losses"

PICTURES: dict[str, Callable[[], Figure]] = {}


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Register a picture; its file is named after the function."""
    PICTURES[draw.__name__] = draw
    return draw


# ---- divergences ---------------------------------------------------------------------------------------------------

Loss = Callable[..., Tensor]

SHAPES: list[tuple[str, Loss]] = [
    ("kl", losses.kl_loss),
    ("reverse_kl", losses.reverse_kl_loss),
    ("jeffreys", losses.jeffreys_loss),
    ("js", losses.js_loss),
    ("skew_kl", losses.skew_kl_loss),
    ("skew_reverse_kl", losses.skew_reverse_kl_loss),
    ("renyi 2", partial(losses.renyi_loss, alpha=2.0)),
    ("adaptive_kl", losses.adaptive_kl_loss),
    ("alpha_divergence 0.5", losses.alpha_divergence_loss),
    ("ab_divergence 0.8, 0.3", losses.ab_divergence_loss),
    ("renyi 0.5", losses.renyi_loss),
    ("cauchy_schwarz", losses.cauchy_schwarz_loss),
    ("chi_square pearson", losses.chi_square_loss),
    ("chi_square neyman", partial(losses.chi_square_loss, kind="neyman")),
    ("total_variation", losses.total_variation_loss),
    ("hellinger", losses.hellinger_loss),
]


def _two_classes(gap: Tensor) -> Tensor:
    return torch.stack([gap, torch.zeros_like(gap)])[None]


@picture
def divergences() -> Figure:
    """Two classes, the teacher gives 0.8 to the first: value, and slope by the student's logit."""
    teacher = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log()
    curves = [Curve(name, partial(loss, teacher_logits=teacher), _two_classes) for name, loss in SHAPES]
    shares = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999])
    ticks = torch.logit(shares), [".001", ".1", ".5", ".9", ".999"]
    points = torch.linspace(-7, 7, 71)
    where = float(torch.logit(torch.tensor(0.8)))
    label = "student's probability"
    return panels(
        curves, points, label, limits=(-1.05, 2.25), mark=where, ticks=ticks, slope_label="slope by the logit"
    )


FITS: list[tuple[str, Loss]] = [
    ("chi_square pearson", losses.chi_square_loss),
    ("kl", losses.kl_loss),
    ("ab_divergence 0.8, 0.3", losses.ab_divergence_loss),
    ("jeffreys", losses.jeffreys_loss),
    ("total_variation", losses.total_variation_loss),
    ("js", losses.js_loss),
    ("reverse_kl", losses.reverse_kl_loss),
    ("chi_square neyman", partial(losses.chi_square_loss, kind="neyman")),
]

PLACES = torch.linspace(-6, 6, 97, dtype=torch.float64)


def _bump(centre: Any, width: Any) -> Tensor:
    return -(((PLACES - centre) / width) ** 2) / 2


def _fit(loss: Loss, teacher: Tensor) -> Tensor:
    """The best single bump under ``loss``, of a grid of centres and widths."""
    centres, widths = torch.linspace(-4, 4, 81).double(), torch.linspace(0.4, 4, 73).double()
    students = _bump(centres[:, None, None], widths[:, None]).flatten(0, 1)
    values = loss(students, teacher.expand_as(students), reduction="none")
    return students[values.argmin()].softmax(-1)


@picture
def divergences_fit() -> Figure:
    """A student that can only be one bump, fitted to a teacher with two."""
    teacher = torch.logaddexp(_bump(-2.5, 0.7) + 1.2, _bump(2.2, 0.7))
    figure, axes = plt.subplots(2, 4, figsize=(9.4, 3.7), sharex=True, sharey=True)
    for axis, (name, loss) in zip(axes.flat, FITS, strict=True):
        law = _fit(loss, teacher)
        axis.fill_between(PLACES, teacher.softmax(-1), color="#cccccc", linewidth=0)
        axis.plot(PLACES, law, color=VALUE)
        axis.set_title(name)
        axis.set_ylim(0, 0.075)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("classes")
    handles = [axes[0, 0].collections[0], axes[0, 0].get_lines()[0]]
    figure.legend(handles, ["teacher", "student"], loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    return figure


LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0, -2.0]], dtype=torch.float64)
FIRST = torch.eye(5, dtype=torch.float64)[:1]


def _first_moved(gap: Tensor) -> Tensor:
    """The teacher's logits, with that of its likeliest class moved by ``gap``."""
    return LOGITS + gap * FIRST


@picture
def logit_distances() -> Figure:
    """Five classes, the likeliest one moved away from the teacher's logits."""
    found: list[tuple[str, Loss]] = [
        ("logit_mse", losses.logit_mse_loss),
        ("logit_mse centred", partial(losses.logit_mse_loss, centred=True)),
        ("cosine_logits centred", partial(losses.cosine_logits_loss, centred=True)),
        ("bce_kd", losses.bce_kd_loss),
        ("pairwise_hinge", losses.pairwise_hinge_loss),
        ("pairwise_logistic", losses.pairwise_logistic_loss),
        ("pairwise_logistic order", partial(losses.pairwise_logistic_loss, target="order")),
        ("list_mle", losses.list_mle_loss),
    ]
    curves = [Curve(name, partial(loss, teacher_logits=LOGITS), _first_moved) for name, loss in found]
    return panels(curves, torch.linspace(-6, 6, 97), "student's logit − teacher's")


LABEL = torch.tensor([0])


@picture
def logit_methods() -> Figure:
    """Five classes, the first one right and the teacher's likeliest: its logit moved away from the teacher's."""
    labelled = {"labels": LABEL}
    found: list[tuple[str, Loss, dict[str, Any]]] = [
        ("kd, T = 4", losses.kd_loss, {}),
        ("kd, T = 1", partial(losses.kd_loss, temperature=1.0), {}),
        ("dkd", losses.dkd_loss, labelled),
        ("nkd", losses.nkd_loss, labelled),
        ("ofa, gamma 1.5", partial(losses.ofa_loss, gamma=1.5), labelled),
        ("logit_standardization", partial(losses.logit_standardization_loss, inner=losses.kd_loss), {}),
    ]
    curves = [Curve(name, partial(loss, teacher_logits=LOGITS, **more), _first_moved) for name, loss, more in found]
    batch = torch.cat([LOGITS, LOGITS.roll(1, 1), LOGITS.roll(2, 1)])
    dist = partial(losses.dist_loss, teacher_logits=batch)
    curves.append(Curve("dist, of three samples", dist, lambda gap: torch.cat([_first_moved(gap), batch[1:]])))
    curves.append(Curve("ce, without a teacher", partial(losses.ce_loss, labels=LABEL), _first_moved))
    return panels(curves, torch.linspace(-6, 6, 61), "student's logit − teacher's")


def _features(*shape: int) -> Tensor:
    """The same numbers every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@picture
def features() -> Figure:
    """Maps and vectors of the student: the teacher's, moved along a direction, or stretched."""
    before, towards = _features(2, 4, 8, 3, 3)
    maps = before.relu()
    vectors = maps.mean(dim=(2, 3))
    means = vectors.roll(1, dims=0)
    found: list[tuple[str, Loss, bool]] = [
        ("fitnets", losses.fitnets_loss, False),
        ("at", losses.at_loss, True),
        ("nst", losses.nst_loss, True),
        ("ft", losses.ft_loss, False),
        ("ickd", losses.ickd_loss, True),
    ]
    curves = []
    for name, loss, listed in found:

        def value(student: Tensor, loss: Loss = loss, listed: bool = listed) -> Tensor:
            return loss([student], [maps]) if listed else loss(student, maps)

        curves.append(Curve(name, value, lambda gap: maps + gap * towards))
    direction = towards.mean(dim=(2, 3))
    curves.append(
        Curve("cosine_features", lambda s: losses.cosine_features_loss(s, vectors), lambda x: vectors + x * direction)
    )
    curves.append(
        Curve("ab, before the ReLU", lambda s: losses.ab_loss([s], [before]), lambda gap: before + gap * towards)
    )
    labels = torch.arange(4)
    nd = partial(losses.nd_loss, teacher_features=vectors, labels=labels, class_means=means)
    curves.append(Curve("nd", nd, lambda gap: vectors + gap * direction))
    return panels(curves, torch.linspace(-2, 2, 61), "distance of the features")


@picture
def relations() -> Figure:
    """Six samples; the student's feature of one of them moves away from where the teacher has it."""
    teacher = _features(6, 4)
    direction = torch.zeros_like(teacher)
    direction[0] = torch.tensor([1.0, -1.0, 1.0, -1.0]) / 2
    found: list[tuple[str, Loss]] = [
        ("rkd", losses.rkd_loss),
        ("sp", losses.sp_loss),
        ("pkt", losses.pkt_loss),
        ("cc", losses.cc_loss),
        ("cka", losses.cka_loss),
        ("darkrank", losses.darkrank_loss),
        ("cka, debiased", partial(losses.cka_loss, debiased=True)),
        ("srd", losses.srd_loss),
    ]
    curves = []
    for name, loss in found:
        curves.append(Curve(name, lambda student, loss=loss: loss(student, teacher), lambda x: teacher + x * direction))
    return panels(curves, torch.linspace(-4, 4, 61), "one sample moved")


@picture
def transport() -> Figure:
    """Four samples, one of which wanders to the class of another; five ordered classes, and a near or a far mistake."""
    batch = 4 * torch.eye(4, 5, dtype=torch.float64)
    wander = torch.zeros_like(batch)
    wander[0, :2] = torch.tensor([-1.0, 1.0])
    places = torch.arange(5, dtype=torch.float64)
    ordered = partial(losses.class_transport_loss, cost=(places[:, None] - places).abs() / 4, teacher_logits=batch[:1])
    found: list[tuple[str, Loss]] = [
        ("sinkhorn, epsilon 0.02", partial(losses.sinkhorn_loss, epsilon=0.02)),
        ("sinkhorn, epsilon 0.1", losses.sinkhorn_loss),
        ("sinkhorn, epsilon 0.5", partial(losses.sinkhorn_loss, epsilon=0.5)),
        ("sinkhorn_divergence", losses.sinkhorn_divergence_loss),
        ("kl, of the same batch", losses.kl_loss),
    ]
    curves = [Curve(name, partial(loss, teacher_logits=batch), lambda x: batch + x * wander) for name, loss in found]
    for word, place in (("a near class", 1), ("a far class", 4)):
        towards = torch.eye(5, dtype=torch.float64)[place]
        curves.append(Curve(f"class_transport, {word}", ordered, lambda x, towards=towards: batch[:1] + x * towards))
    curves.append(
        Curve(
            "kl, either class",
            partial(losses.kl_loss, teacher_logits=batch[:1]),
            lambda x: batch[:1] + x * places.eq(1),
        )
    )
    return panels(curves, torch.linspace(-2, 8, 51), "logit moved")


@picture
def cross_tokenizer() -> Figure:
    """Five entries of the student beside five or four of the teacher; one logit of the student moves."""
    base = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0]], dtype=torch.float64)
    fewer, renamed = base[:, :4], base.flip(1)
    half = partial(losses.gold_loss, shared=[[0, 0], [1, 1]])
    found: list[tuple[str, Loss]] = [
        ("uld, the same entries", partial(losses.uld_loss, teacher_logits=base)),
        ("uld, renamed entries", partial(losses.uld_loss, teacher_logits=renamed)),
        ("uld, four entries", partial(losses.uld_loss, teacher_logits=fewer)),
        ("gold, all shared", partial(losses.gold_loss, teacher_logits=base)),
        ("gold, two of five shared", partial(half, teacher_logits=base)),
        ("gold, two of four shared", partial(half, teacher_logits=fewer)),
        ("gold, the teacher in two tokens", partial(half, teacher_logits=base, teacher_rest=base.new_tensor([-0.7]))),
        ("kl, the same entries", partial(losses.kl_loss, teacher_logits=base)),
    ]
    moved = torch.eye(1, 5, dtype=torch.float64)
    curves = [Curve(name, loss, lambda x: base + x * moved) for name, loss in found]
    return panels(curves, torch.linspace(-4, 4, 81), "logit moved")


def _light(svg: str) -> str:
    """The same drawing with paths of two decimals and without indentation."""
    text = "\n".join(line.strip() for line in svg.splitlines())
    return re.sub(r'(?<= d=")[^"]+', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text) + "\n"


def main(names: Sequence[str]) -> None:
    """Write the pictures of these names, or all of them."""
    unknown = set(names) - set(PICTURES)
    if unknown:
        sys.exit(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    for name in names or PICTURES:
        file = FOLDER / f"{name}.svg"
        figure, text = PICTURES[name](), io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
        file.write_text(_light(text.getvalue()), encoding="utf-8")
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
