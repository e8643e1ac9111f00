"""The work of ``kdkit evaluate``: the student of a finished run, measured again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from kdkit._files import write_json
from kdkit._run.build import build_network, make_accelerator, set_scene
from kdkit._run.distill import network_name
from kdkit._run.folder import load_config
from kdkit._run.results import final_split, measure
from kdkit._run.reuse import reuse_saved_classifier
from kdkit._run.tokenizers import scene_of_teacher
from kdkit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from kdkit._config.context import Context

__all__ = ["evaluate_run"]


def evaluate_run(cfg: DictConfig, context: Context) -> Path:
    """Measure the exported student of ``cfg.run`` on ``cfg.split``; settings come from the run.

    Returns:
        ``RUN/evaluation-<split>.json``, which is also printed.
    """
    from kdkit._run.finish import print_rows
    from kdkit._run.session import Session

    if not cfg.run:
        raise ConfigError("kdkit evaluate needs a run; give its folder with run=runs/...")
    folder = Path(cfg.run)
    stored = load_config(folder)
    for override in context.overrides:
        key = override.lstrip("+").split("=", 1)[0]
        if key.startswith(("data.", "engine.")):
            OmegaConf.update(stored, key, OmegaConf.select(cfg, key), force_add=True)
        elif key == "data":
            stored.data = cfg.data
    stored.spec = dict.fromkeys(stored.spec)
    scene = set_scene(stored, make_accelerator(stored))
    role = "teacher" if stored.get("network") == "teacher" else "student"
    if role == "teacher":
        scene = scene_of_teacher(scene)
        stored = scene.cfg
    reused = role == "student" and stored.student.get("classifier") is not None
    block = OmegaConf.create({**stored[role], "weights": None if reused else str(_weights(folder))})
    network = build_network(block, scene, seed=int(stored.seed), where=role, name=network_name(stored[role]))
    if reused:
        reuse_saved_classifier(block, network, _weights(folder), scene)
    split = cfg.get("split") or final_split(scene)
    if split not in ("train", "val", "test"):
        raise ConfigError(
            f"split must be train, val or test, got {split!r}{did_you_mean(split, ['train', 'val', 'test'])}"
        )
    if scene.data.size(split) == 0:
        raise ConfigError(f"split={split} is empty in data {scene.data.name!r}; choose another one")
    row = measure([network], scene, name=f"{role} on {split}", origin=str(folder), split=split)
    session = Session(stored, folder, scene, {})
    print_rows(session, [row])
    target = folder / f"evaluation-{split}.json"
    write_json(target, {"split": split, "data": scene.data.describe(), "row": row.as_dict()})
    session.say(f"written: {target}")
    return target


def _weights(folder: Path) -> Path:
    student = folder / "student"
    if not student.is_dir():
        raise ConfigError(
            f"run={folder} has no exported student; it was stopped early, or made with engine.export=false"
        )
    return student
