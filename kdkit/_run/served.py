"""A teacher behind a server, made ready for a run."""

from __future__ import annotations

from omegaconf import DictConfig

from kdkit._config.build import instantiate
from kdkit._run.build import Scene
from kdkit._run.cache import check_answers
from kdkit._run.teacher import Guide
from kdkit.objective import Objective
from kdkit.teachers.served import ServedTeacher

__all__ = ["provide_served", "served_guide"]


def served_guide(cfg: DictConfig, scene: Scene) -> Guide:
    """The server that ``cfg.teacher.served`` names, which must be up.

    Raises:
        ServerError: if it is not, or has no such model.
    """
    teacher: ServedTeacher = instantiate(cfg.teacher.served, scene.task, where="teacher.served")
    return Guide(teacher)


def provide_served(cfg: DictConfig, scene: Scene, objective: Objective) -> Guide:
    """The same, if the terms of the objective can use its answers.

    Raises:
        ConfigError: for a term at another temperature than 1, or one that compares logits.
    """
    guide = served_guide(cfg, scene)
    teacher = guide.teacher
    assert isinstance(teacher, ServedTeacher)
    guided = check_answers(
        objective,
        (teacher.k, teacher.classes, teacher.temperature),
        holds="a server gives",
        made="a server answers",
        way_out=f"ask for all with teacher.served.k={teacher.classes}",
    )
    teacher.dense = any(not loss.reads_sparse for loss in guided)
    return guide
