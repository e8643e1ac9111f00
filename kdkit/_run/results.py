"""Rows of a report: each network measured the same way on the same split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

import kdkit
from kdkit._run.build import Scene
from kdkit._run.tokenizers import scene_of_teacher
from kdkit.data._base import Split
from kdkit.engine.evaluate import evaluate
from kdkit.models._network import Network
from kdkit.teachers._base import Teacher

__all__ = ["Row", "final_split", "measure", "results"]


@dataclass(slots=True)
class Row:
    """One line of the table: a network, where it came from and what it achieves."""

    name: str
    network: str
    origin: str
    metrics: dict[str, float]
    parameters: int
    flops: int | None
    latency_ms: float | None
    file_bytes: int
    seconds: float | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, as ``results.json`` holds it."""
        return {key: getattr(self, key) for key in self.__slots__}


def final_split(scene: Scene) -> Split:
    """``"test"``, or the validation split of a set without one, or else the training split."""
    splits: tuple[Split, ...] = ("test", "val")
    return next((split for split in splits if scene.data.size(split) > 0), "train")


def measure(
    networks: Sequence[Network],
    scene: Scene,
    *,
    name: str,
    origin: str,
    split: Split | None = None,
    asked: Teacher | None = None,
    teacher: Teacher | None = None,
    seconds: float | None = None,
    profile: bool = True,
) -> Row:
    """Evaluate on the final split and profile on a batch of one.

    Args:
        networks: one network, or the members of an ensemble (sizes and times add up).
        scene: data, task, device; a teacher with a tokenizer of its own is measured on its own tokens.
        name: of the row.
        origin: where the weights came from.
        split: what to evaluate on; by default :func:`final_split`.
        asked: evaluated in place of the single network: an ensemble as one.
        teacher: adds agreement with the teacher.
        seconds: training time.
        profile: also count FLOPs and measure the latency.
    """
    from kdkit.models import count_flops, count_parameters, measure_latency

    for network in networks:
        network.tap({})
    if getattr(networks[0], "reads_teacher_tokens", False):
        scene = scene_of_teacher(scene)
    result = evaluate(
        asked or networks[0],
        task=scene.task,
        data=scene.data,
        split=split or final_split(scene),
        batch_size=int(scene.cfg.engine.eval_batch_size or 4 * scene.cfg.engine.batch_size),
        accelerator=scene.accelerator,
        teacher=teacher,
    )
    flops: list[int | None] = []
    latency: list[float] = []
    if profile:
        example = scene.task.example(scene.probe_batch())
        for network in networks:
            with network.whole():
                flops.append(count_flops(network, scene.task.inputs(network, example)))
                latency.append(measure_latency(network, scene.task.inputs(network, example)))
    return Row(
        name=name,
        network=networks[0].name if len(networks) == 1 else f"{len(networks)} networks",
        origin=origin,
        metrics=result.metrics,
        parameters=sum(count_parameters(network.module) for network in networks),
        flops=sum(count for count in flops if count is not None) if flops and None not in flops else None,
        latency_ms=sum(latency) if latency else None,
        file_bytes=sum(_bytes(network) for network in networks),
        seconds=seconds,
        extras=result.extras,
    )


def _bytes(network: Network) -> int:
    """Size of the weights, tied ones counted once."""
    storages = {}
    for value in network.module.state_dict().values():
        storages[value.data_ptr()] = value.numel() * value.element_size()
    return sum(storages.values())


def results(
    cfg: DictConfig,
    scene: Scene,
    rows: Sequence[Row],
    *,
    kind: str,
    environment: dict[str, Any],
    steps: int,
    seconds: float,
    summary: dict[str, Any],
) -> dict[str, Any]:
    """The content of ``results.json``."""
    weights = OmegaConf.to_container(cfg.weights, resolve=True)
    return {
        "kdkit": kdkit.__version__,
        "command": environment["command"],
        "kind": kind,
        "name": cfg.name,
        "task": scene.task.name,
        "primary": scene.task.primary,
        "higher_is_better": scene.task.higher_is_better,
        "data": scene.data.describe(),
        "split": final_split(scene),
        "seed": cfg.seed,
        "steps": steps,
        "seconds": seconds,
        "losses": weights,
        "online": bool(cfg.teacher_loss) and kind == "distill",
        "averaged": bool((cfg.teacher or {}).get("ema")) and kind == "distill",
        "chain": [row.name for row in rows if row.name in (cfg.get("chain") or {})],
        "summary": summary,
        "rows": [row.as_dict() for row in rows],
        "environment": environment,
    }
