"""A teacher with a tokenizer of its own: the data, the task and the settings that it is built and trained with."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from kdkit._config.build import instantiate
from kdkit.data._base import DataModule, TextSpec
from kdkit.models._language import LanguageNetwork
from kdkit.models._network import Network

if TYPE_CHECKING:
    from kdkit._run.build import Scene

__all__ = ["as_teacher_reads", "mark_teacher", "scene_of_teacher", "settle_teacher", "shared_entries"]


def as_teacher_reads(data: DataModule) -> DataModule:
    """The data in the teacher's own tokens, or themselves where both share a tokenizer."""
    teacher_rows = getattr(data, "for_teacher", None)
    return data if teacher_rows is None else teacher_rows()  # type: ignore[no-any-return]


def scene_of_teacher(scene: Scene) -> Scene:
    """What the teacher is built, trained and measured with: the scene itself, unless it has its own tokenizer."""
    from kdkit._run.build import Scene

    data = as_teacher_reads(scene.data)
    if data is scene.data:
        return scene
    cfg = copy.deepcopy(scene.cfg)
    cfg.spec.vocab_size = data.spec.vocab_size  # type: ignore[union-attr]
    return Scene(cfg, data, instantiate(cfg.task, data.spec, where="task"), scene.accelerator)


def settle_teacher(cfg: DictConfig, data: DataModule) -> None:
    """Write the size of the teacher's own vocabulary where its block refers to that of the data, which is the
    student's; the settings are kept and read again like that."""
    spec = getattr(data.spec, "teacher", None)
    if spec is not None and cfg.get("teacher") is not None:
        cfg.teacher = _replaced(OmegaConf.to_container(cfg.teacher, resolve=False), spec.vocab_size)


def _replaced(value: Any, size: int) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, size) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, size) for item in value]
    return size if value == "${spec.vocab_size}" else value


def mark_teacher(network: Network, scene: Scene) -> Network:
    """The network, which from now on reads the teacher's tokens of a batch where there are such."""
    if isinstance(network, LanguageNetwork):
        network.reads_teacher_tokens = getattr(scene.data.spec, "teacher", None) is not None
    return network


def shared_entries(data: DataModule) -> Tensor | None:
    """Entries (student, teacher) of two vocabularies that stand for the same bytes, int64 ``[M, 2]``."""
    from kdkit.data import match_vocabularies

    spec = data.spec
    if not isinstance(spec, TextSpec) or spec.teacher is None:
        return None
    return torch.from_numpy(match_vocabularies(spec.tokenizer, spec.teacher.tokenizer))
