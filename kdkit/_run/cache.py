"""The work of ``kdkit cache``: what a teacher answers to every training sample, kept on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from kdkit._config.build import instantiate
from kdkit._files import sha256_json, write_json
from kdkit._run.build import Scene, make_accelerator, set_scene
from kdkit._run.folder import run_environment
from kdkit._run.results import Row, measure
from kdkit._run.teacher import Guide, provide_teacher
from kdkit.data._base import TextSpec
from kdkit.engine.callbacks import make_progress
from kdkit.errors import ConfigError
from kdkit.objective import Objective

if TYPE_CHECKING:
    from kdkit._config.context import Context
    from kdkit.losses._base import DistillationLoss
    from kdkit.teachers._cache_files import Definition
    from kdkit.teachers.cached import CachedTeacher

__all__ = ["cache_answers", "cached_row", "check_answers", "provide_cached"]


def cache_answers(cfg: DictConfig, context: Context) -> Path:
    """Write the cache, or what is missing of it.

    Returns:
        Its folder.
    """
    from kdkit.teachers._cache_files import MANIFEST, read_manifest, refuse_difference, write_manifest
    from kdkit.teachers.cache_writer import summary
    from kdkit.teachers.cached import check_samples

    _check(cfg)
    scene = set_scene(cfg, make_accelerator(cfg))
    check_samples(scene.data, "kdkit cache")
    guide, name = _teacher(cfg, scene)
    definition = _definition(cfg, scene, guide, name)
    folder = Path(cfg.cache.folder or f"runs/cache/{cfg.name}-{sha256_json(definition.identifying())[:12]}")
    known: dict[str, Any] = {}
    if (folder / MANIFEST).is_file():
        there, known = read_manifest(folder)
        refuse_difference(folder, there, definition, "choose another cache.folder, or remove that one")
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"cache.folder={folder} is there already and holds something else; choose another one")
    scene.accelerator.wait_for_everyone()  # all have looked before anybody writes
    main = scene.accelerator.is_main_process
    facts = {"command": context.job_line, "complete": False, **known}
    if main:
        write_manifest(folder, definition, facts)
        write_json(folder / "environment.json", run_environment(context.job_line))
    scene.accelerator.wait_for_everyone()
    _write(folder, definition, guide, scene)
    row = known.get("row") or _teacher_row(guide, scene)  # all ranks measure together
    scene.accelerator.wait_for_everyone()
    if main:
        facts |= {"complete": True, "summary": summary(folder, definition), "row": row}
        write_manifest(folder, definition, facts)
        _tell(folder, definition, facts["summary"], scene)
    return folder


def _check(cfg: DictConfig) -> None:
    block = cfg.cache
    for key, least in (("k", 1), ("shard_samples", 1)):
        value = block[key]
        if key == "k" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"cache.{key} must be a whole number of at least {least}, got {value!r}")
    temperature = block.temperature
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise ConfigError(f"cache.temperature must be a positive number, got {temperature!r}")
    if block.dtype not in ("float16", "float32"):
        raise ConfigError(f"cache.dtype must be float16 or float32, got {block.dtype!r}")
    if cfg.teacher is None or cfg.teacher_loss or cfg.teacher.get("ema") is not None:
        raise ConfigError("kdkit cache needs a teacher that stays as it is; choose one with teacher=…")
    if cfg.data.get("teacher_tokenizer") is not None:
        raise ConfigError(
            "kdkit cache keeps answers in the student's tokens, and data.teacher_tokenizer gives the teacher its own; "
            "set data.teacher_tokenizer=null"
        )
    if cfg.teacher.get("cached") is not None:
        raise ConfigError("kdkit cache asks a teacher, and teacher=cached has none; choose another one with teacher=…")


def _teacher(cfg: DictConfig, scene: Scene) -> tuple[Guide, str]:
    from kdkit._run.distill import network_name

    if cfg.teacher.get("served") is not None:
        from kdkit._run.served import served_guide

        guide: Guide | None = served_guide(cfg, scene)
        name = str(cfg.teacher.served.model)
    else:
        name = network_name(cfg.teacher)
        guide = provide_teacher(cfg, scene, name, make_progress(cfg.engine.progress, scene.task.unit))
    assert guide is not None and guide.teacher is not None
    if scene.accelerator.is_main_process:
        print(f"teacher {name}: {guide.origin}", flush=True)
    return guide, name


def _definition(cfg: DictConfig, scene: Scene, guide: Guide, name: str) -> Definition:
    from kdkit.teachers._cache_files import Definition

    assert guide.teacher is not None
    spec = scene.data.spec
    probe = guide.teacher(scene.probe_batch())
    scene.task.check_outputs(probe, None, scene.probe_batch())
    classes = probe.logits.shape[-1]
    told = classes if probe.sparse is None else probe.sparse.ids.shape[-1]
    k = min(64, told) if cfg.cache.k is None else int(cfg.cache.k)
    if k > classes:
        what = "entries of the vocabulary" if isinstance(spec, TextSpec) else "classes"
        raise ConfigError(f"cache.k must be at most the {classes} {what}, got {k}; set cache.k={classes} to keep all")
    if k > told:
        raise ConfigError(f"cache.k must be at most the {told} entries that the server is asked for, got {k}")
    if told < classes and float(cfg.cache.temperature) != 1.0:
        raise ConfigError(
            f"cache.temperature must be 1, at which the server tells {told} of {classes:,} entries, got "
            f"{cfg.cache.temperature:g}; leave it out"
        )
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    return Definition(
        teacher={"identity": guide.teacher.identity, "name": name, "origin": guide.origin},
        data={"name": scene.data.name, "fingerprint": scene.data.fingerprint, "settings": settings},
        split="train",
        samples=scene.data.size("train"),
        classes=classes,
        k=k,
        temperature=float(cfg.cache.temperature),
        dtype=str(cfg.cache.dtype),
        precision=str(cfg.engine.precision),
        shard_samples=int(cfg.cache.shard_samples),
    )


def _write(folder: Path, definition: Definition, guide: Guide, scene: Scene) -> None:
    """This rank's share of the shards."""
    from kdkit.teachers.cache_writer import missing_shards, write_shards

    accelerator, engine = scene.accelerator, scene.cfg.engine
    missing = missing_shards(folder, definition)
    accelerator.wait_for_everyone()  # before anybody adds to them
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if accelerator.is_main_process:
        kept = f", {definition.shards - len(missing)} of them there already" if len(missing) < definition.shards else ""
        print(
            f"{definition.samples:,} samples, {definition.k} of {definition.classes:,} entries per position, "
            f"{definition.shards} shards{kept}; stopped, the same command goes on",
            flush=True,
        )
    begin, done = time.monotonic(), 0

    def finished(number: int) -> None:
        nonlocal done
        done += 1
        if accelerator.is_main_process and engine.progress != "none":
            left = (time.monotonic() - begin) / done * (len(mine) - done)
            print(f"shard {number + 1}/{definition.shards}  (about {left:.0f} s left)", flush=True)

    assert guide.teacher is not None
    asked = int(engine.eval_batch_size or engine.batch_size)
    sizes = range(min(asked, definition.shard_samples), 0, -1)
    size = next(size for size in sizes if definition.shard_samples % size == 0)
    with accelerator.autocast():
        write_shards(
            folder,
            definition,
            mine,
            guide.teacher,
            scene.task,
            scene.data,
            batch_size=size,
            device=scene.device,
            finished=finished,
        )


def _teacher_row(guide: Guide, scene: Scene) -> dict[str, Any] | None:
    """What the teacher itself achieves, if it is here to be measured."""
    if not guide.members:
        return None
    networks = [member.network for member in guide.members]
    seconds = [member.seconds for member in guide.members if member.seconds is not None]
    asked = guide.teacher if len(networks) > 1 else None
    spent = sum(seconds) if seconds else None
    return measure(networks, scene, name="teacher", origin=guide.origin, asked=asked, seconds=spent).as_dict()


def _tell(folder: Path, definition: Definition, facts: dict[str, Any], scene: Scene) -> None:
    unit = scene.task.unit.removesuffix("s")
    lost = "not known" if facts["kl"] is None else f"{facts['kl']:.3g} nats per {unit}"
    full = 4 * definition.classes
    print(
        f"{facts['positions']:,} {unit}s in {facts['bytes'] / 1e6:,.1f} MB, {facts['bytes_per_position']:.1f} bytes "
        f"per {unit} (all {definition.classes:,} float32 logits: {full:,})\n"
        f"not kept: {facts['rest']:.2%} of the teacher's mass; KL(teacher || cache) {lost}\n"
        f"cache: {folder}\n"
        f"use it with: kdkit distill … teacher=cached teacher.cached.folder={folder}",
        flush=True,
    )


# ---- reading -------------------------------------------------------------------------------------------------------


def provide_cached(cfg: DictConfig, scene: Scene, objective: Objective) -> Guide:
    """The answers on disk that ``cfg.teacher.cached`` names, if the terms of the objective can use them.

    Raises:
        ConfigError: for a term at another temperature than the cache's.
    """
    settings = OmegaConf.to_container(cfg.data, resolve=True)
    teacher: CachedTeacher = instantiate(
        cfg.teacher.cached, scene.task, scene.data, offer={"settings": settings}, where="teacher.cached"
    )
    kept = teacher.definition
    guided = check_answers(
        objective,
        (kept.k, kept.classes, kept.temperature),
        holds=f"the cache {teacher.folder} holds",
        made=f"the cache {teacher.folder} was made",
        way_out="make another cache with cache.temperature={}",
    )
    teacher.dense = any(not loss.reads_sparse for loss in guided)
    return Guide(teacher)


def check_answers(
    objective: Objective, known: tuple[int, int, float], *, holds: str, made: str, way_out: str
) -> list[DistillationLoss]:
    """Refuse terms that ask more of a teacher than its best entries tell.

    Args:
        objective: of the student.
        known: entries, classes and temperature of the answers.
        holds: "the cache X holds", for the sentence.
        made: "the cache X was made", likewise.
        way_out: what to do about a temperature, which takes the place of the braces.

    Returns:
        The terms that learn from the teacher.

    Raises:
        ConfigError: naming the term.
    """
    k, classes, temperature = known
    guided = [(name, loss) for name, loss in objective if loss.needs_teacher]
    for name, loss in guided:
        if loss.needs_scores:
            raise ConfigError(
                f"loss.{name} compares the logits themselves, and {holds} probabilities, which do not tell them; "
                "choose a divergence, or the teacher itself"
            )
        asked = loss.teacher_temperatures()
        other = [value for value in asked if isinstance(value, torch.Tensor) or value != temperature]
        if k < classes and other:
            raise ConfigError(
                f"loss.{name} softens the teacher at temperature {other[0]} and {made} at {temperature:g}, which does "
                f"not tell how the {classes - k:,} entries that were not kept would look; let it soften at "
                f"{temperature:g}, or {way_out.format(other[0])}"
            )
    return [loss for _, loss in guided]


def cached_row(teacher: CachedTeacher) -> Row | None:
    """What the teacher itself achieved when the cache was made."""
    row = teacher.facts.get("row")
    if row is None:
        return None
    kept = teacher.definition
    there = row.get("origin", "unknown")
    origin = f"answers out of the cache {teacher.folder} ({kept.k} of {kept.classes:,} entries); there: {there}"
    try:
        return Row(**{**row, "origin": origin})
    except TypeError:  # a manifest that somebody edited must not cost a finished training
        return None
