"""Every recipe composes and fits what it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdkit._config.check import prepare
from kdkit._config.compose import Composer, unlocked
from kdkit._config.context import Context
from kdkit._config.recipes import groups, headline, recipes_dir
from kdkit.errors import ConfigError

RECIPES = recipes_dir()
COMPOSER = Composer(RECIPES)
FILES = sorted(RECIPES.rglob("*.yaml"))
CHOICES = [(group, option) for group, options in groups(RECIPES).items() for option in options]
ALONE_TEACHERS = {"none", "ema", "cached", "served", "routed"}
"""Teachers that no student is called like."""

HOW = {"loss": ["loss=[ce,{}]"], "logger": ["logger=[{}]"], "teacher": ["student={}", "teacher={}"]}
ALONE = [choice for choice in CHOICES if choice[0] != "student" and choice[1] not in ALONE_TEACHERS]


def test_there_are_recipes() -> None:
    assert len(FILES) > 50
    assert len(CHOICES) > 50
    expected = {"data", "debug", "engine", "experiment", "logger", "loss", "optim", "scheduler", "student", "task"}
    assert expected <= {group for group, _ in CHOICES}


@pytest.mark.parametrize(("group", "option"), ALONE, ids=["-".join(choice) for choice in ALONE])
def test_a_recipe_composes_and_binds(group: str, option: str) -> None:
    overrides = [word.format(option) for word in HOW.get(group, [f"{group}={{}}"])]
    cfg = COMPOSER.compose("distill", overrides)
    with unlocked(cfg):
        for key in OmegaConf.missing_keys(cfg):
            OmegaConf.update(cfg, key, "given")
    prepare(cfg, Context("distill", tuple(overrides), tuple(overrides), RECIPES, "distill"))


def test_every_student_may_be_a_teacher() -> None:
    students, teachers = ({option for group, option in CHOICES if group == side} for side in ("student", "teacher"))
    assert teachers == students | ALONE_TEACHERS


def test_the_student_may_teach_itself() -> None:
    cfg = prepare(COMPOSER.compose("distill", ["teacher=ema"]), Context("distill", (), ("teacher=ema",), RECIPES))
    assert list(cfg.teacher) == ["ema"]


@pytest.mark.parametrize("experiment", [option for group, option in CHOICES if group == "experiment"])
@pytest.mark.parametrize("teacher", sorted(ALONE_TEACHERS))
def test_an_experiment_may_do_without_its_teacher(experiment: str, teacher: str) -> None:
    words = [f"experiment={experiment}", f"teacher={teacher}", "strategy=none", "~chain"]
    own = {"none": ["loss=[ce]"], "cached": ["teacher.cached.folder=kept"], "served": ["teacher.served.model=large"]}
    own["routed"] = ["teacher.routed.teachers={all: {model: ${student.model}, weights: random}}"]
    own["routed"] += ["teacher.routed.routes={*: all}"]
    words += own.get(teacher, [])
    context = Context("distill", tuple(words), tuple(words), RECIPES)
    if experiment == "minilm_embedding" and teacher in ("cached", "served", "routed"):
        with pytest.raises(ConfigError, match=r"cosine_features reads features or weights of (the|one) teacher"):
            prepare(COMPOSER.compose("distill", words), context)
        return
    cfg = prepare(COMPOSER.compose("distill", words), context)
    kept = [teacher, "train"] if teacher == "routed" else [teacher]
    assert cfg.teacher is None if teacher == "none" else list(cfg.teacher) == kept


@pytest.mark.parametrize("command", ["distill", "train", "cache", "evaluate", "compare"])
def test_a_command_composes(command: str) -> None:
    overrides = ["run=somewhere"] if command == "evaluate" else []
    cfg = COMPOSER.compose(command, overrides)
    prepare(cfg, Context(command, (), tuple(overrides), RECIPES, command))


@pytest.mark.parametrize("debug", ["default", "overfit", "one_batch"])
@pytest.mark.parametrize("experiment", [option for group, option in CHOICES if group == "experiment"])
def test_a_debug_profile_wins_over_an_experiment(experiment: str, debug: str) -> None:
    cfg = COMPOSER.compose("distill", [f"experiment={experiment}", f"debug={debug}"])
    assert cfg.name == "debug"
    assert cfg.engine.max_steps is not None
    prepare(cfg)


@pytest.mark.parametrize("file", FILES, ids=[file.relative_to(RECIPES).as_posix() for file in FILES])
def test_a_recipe_starts_with_what_it_is_for(file: Path) -> None:
    line = headline(file)
    assert line
    if file.parent.name in {"loss", "optim", "scheduler", "engine", "experiment", "debug", "logger", "data", "student"}:
        assert line.startswith("kdkit ")
        assert re.search(rf"{file.parent.name}(=|\.|@)", line)
