"""The end of a run: rows, results, exported student, report, and what the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from kdkit._files import write_atomic
from kdkit._run.build import Scene
from kdkit._run.cache import cached_row
from kdkit._run.distill import Distilled
from kdkit._run.results import Row, measure, results
from kdkit._run.session import Session
from kdkit._run.teacher import Guide
from kdkit.engine.trainer import FitResult
from kdkit.models._network import Network
from kdkit.teachers._base import Teacher
from kdkit.teachers.cached import CachedTeacher
from kdkit.teachers.ensemble import EnsembleTeacher
from kdkit.teachers.live import LiveTeacher

__all__ = ["distilled_rows", "finish", "print_rows", "trained_rows"]

_SHOWN = {
    "classification": ("accuracy", "nll", "ece", "agreement"),
    "sequence_classification": ("accuracy", "f1", "matthews", "nll", "ece", "agreement"),
    "embedding": ("cosine", "spearman"),
    "causal_lm": ("perplexity", "bits_per_byte", "accuracy", "agreement"),
}
_PERCENT = {"accuracy", "top5", "f1", "agreement", "ece", "adaptive_ece"}


def distilled_rows(session: Session, distilled: Distilled) -> list[Row]:
    """Teacher, student alone and student distilled, as far as the run has them."""
    scene, guide, quiet = session.scene, distilled.guide, session.quiet
    rows = []
    teacher = guide.teacher if guide is not None and (guide.teacher is None or guide.teacher.live) else None
    for place, (name, found) in enumerate(distilled.path if not quiet else []):
        rows += _teacher_rows(scene, found, name, distilled.path[place - 1][1].teacher if place else None)
    if distilled.alone is not None:
        alone = distilled.alone
        rows.append(
            measure(
                [alone.network],
                scene,
                name="student alone",
                origin=alone.origin,
                teacher=teacher,
                seconds=alone.seconds,
            )
        )
    name = "student distilled" if guide is not None and guide.teacher is not None else "student"
    rows.append(
        measure(
            [distilled.student],
            scene,
            name=name,
            origin=distilled.origin,
            teacher=teacher,
            seconds=distilled.fit.seconds,
            profile=not quiet,
        )
    )
    if not quiet:
        rows[-1:-1] = _generations(scene, distilled, teacher)
    return rows


def _generations(scene: Scene, distilled: Distilled, teacher: Teacher | None) -> list[Row]:
    """A row for the students of a chain as an ensemble, if all of them are the same network."""
    students = [*(guide.members[0].network for _, guide in distilled.path[1:]), distilled.student]
    if len(students) == 1 or len({network.name for network in students}) > 1:
        return []
    asked = EnsembleTeacher([LiveTeacher(network, scene.task) for network in students])
    origin = f"the mean of the probabilities of the {len(students)} students"
    return [measure(students, scene, name="all students", origin=origin, asked=asked, teacher=teacher)]


def _teacher_rows(scene: Scene, guide: Guide, name: str, taught: Teacher | None) -> list[Row]:
    """One row for a teacher, an ensemble or a link of a chain; one each for several that learnt beside the student."""
    if isinstance(guide.teacher, CachedTeacher):
        row = cached_row(guide.teacher)
        return [] if row is None else [row]
    if not guide.members:
        return []  # behind a server
    if guide.learners:
        return [
            measure(
                [member.network],
                scene,
                name=name if number == 1 else f"{name} {number}",
                origin=member.origin,
                seconds=member.seconds,
            )
            for number, member in enumerate(guide.members, start=1)
        ]
    networks = [member.network for member in guide.members]
    seconds = [member.seconds for member in guide.members if member.seconds is not None]
    asked = guide.teacher if len(networks) > 1 else None
    spent = sum(seconds) if seconds else None
    return [measure(networks, scene, name=name, origin=guide.origin, asked=asked, teacher=taught, seconds=spent)]


def trained_rows(session: Session, network: Network, fit: FitResult, origin: str) -> list[Row]:
    """The one row of a network trained alone."""
    role = str(session.cfg.get("network", "student"))
    return [measure([network], session.scene, name=role, origin=origin, seconds=fit.seconds)]


def finish(session: Session, kind: str, student: Network, fit: FitResult, rows: Sequence[Row]) -> dict[str, Any]:
    """Write ``results.json``, the exported student and the report; show the table."""
    cfg, scene = session.cfg, session.scene
    summary = {
        "selected_step": fit.selected_step,
        "validation": fit.validation,
        "teacher_share": fit.teacher_share,
        "precision": cfg.engine.precision,
        "device": str(scene.device),
        "processes": scene.accelerator.num_processes,
    }
    content = results(
        cfg,
        scene,
        rows,
        kind=kind,
        environment=session.environment,
        steps=fit.steps,
        seconds=fit.seconds,
        summary=summary,
    )
    if not scene.accelerator.is_main_process:
        return content
    session.write_results(content)
    if cfg.engine.export and not session.quiet:
        _export(session, student, content)
    if not session.quiet:
        print_rows(session, rows)
        session.say(f"run: {session.folder}")
    if cfg.engine.report and not session.quiet:
        from kdkit.report import write_report

        session.say(f"report: {write_report(session.folder)}")
    return content


def _export(session: Session, student: Network, content: dict[str, Any]) -> None:
    from kdkit.models.export import export_student
    from kdkit.report import model_card

    scene = session.scene
    student.tap({})
    student.eval()
    folder = session.folder / "student"
    example = scene.task.inputs(student, scene.task.example(scene.probe_batch()))
    facts = export_student(student, folder, spec=scene.data.spec, example=example, metadata={"name": content["name"]})
    content["snippet"] = facts["snippet"]
    session.write_results(content)
    config: Any = OmegaConf.to_container(session.cfg, resolve=True)
    write_atomic(folder / "README.md", model_card(content, config, facts["snippet"]))


def print_rows(session: Session, rows: Sequence[Row]) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in _SHOWN.get(session.scene.task.name, ()) if any(name in row.metrics for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(["", "network", *(name.replace("_", " ") for name in shown), "parameters"]):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in rows:
        values = [_value(name, row.metrics.get(name)) for name in shown]
        table.add_row(row.name, row.network, *values, f"{row.parameters:,}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print()
    console.print(table)
    console.print()


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2%}" if name in _PERCENT else f"{value:.4g}"
