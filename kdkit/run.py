"""The commands, top to bottom: settings in, a folder with results out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from kdkit._run.alone import train_network
from kdkit._run.cache import cache_answers
from kdkit._run.compare import compare
from kdkit._run.distill import distill_networks
from kdkit._run.evaluate import evaluate_run
from kdkit._run.finish import distilled_rows, finish, trained_rows
from kdkit._run.session import open_session
from kdkit.errors import ConfigError

if TYPE_CHECKING:
    from kdkit._config.context import Context

__all__ = ["cache", "compare", "distill", "evaluate", "train"]


def distill(cfg: DictConfig, context: Context) -> Path:
    """Teacher to student: train what is missing, distil, measure, export, report.

    Returns:
        The folder of the run.
    """
    if cfg.student is None:
        raise ConfigError("kdkit distill needs a student; choose one with student=..., see `kdkit ls models`")
    with open_session(cfg, context, tag="+".join(str(name) for name in cfg.loss)) as session:
        distilled = distill_networks(session)
        finish(session, "distill", distilled.student, distilled.fit, distilled_rows(session, distilled))
        return session.folder


def train(cfg: DictConfig, context: Context) -> Path:
    """A network alone: the student, or with ``network=teacher`` the teacher by its own recipe.

    Returns:
        The folder of the run.
    """
    with open_session(cfg, context, tag=str(cfg.get("network", "student"))) as session:
        network, fit, origin = train_network(session)
        finish(session, "train", network, fit, trained_rows(session, network, fit, origin))
        return session.folder


def cache(cfg: DictConfig, context: Context) -> Path:
    """Ask the teacher about every training sample and keep its best entries; goes on where it was stopped.

    Returns:
        The folder of the cache.
    """
    return cache_answers(cfg, context)


def evaluate(cfg: DictConfig, context: Context) -> Path:
    """The student of a finished run, on any split or data.

    Returns:
        The file with the metrics.
    """
    return evaluate_run(cfg, context)
