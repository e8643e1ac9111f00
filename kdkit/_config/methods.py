"""``kdkit compare``: one set of settings per method out of a single command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from kdkit._config.build import instantiate
from kdkit._config.check import prepare
from kdkit._config.compose import Composer, unlocked
from kdkit._config.context import Context
from kdkit.errors import ConfigError, did_you_mean

__all__ = ["baseline_name", "method_configs", "method_losses", "seed_list", "with_losses"]

_USUAL = ("ce", "kd", "js", "nkd")
_OWN = ("losses", "base", "baseline", "seeds", "loss", "budget", "search")
_PER_LOSS = ("loss", "weights", "teacher_loss", "teacher_weights", "features")


def method_losses(method: str, base: Sequence[str]) -> list[str]:
    """Loss recipes of a method: those of ``base``, then those of its name (``kd+nd`` names two), each once."""
    return list(dict.fromkeys([*base, *(part.strip() for part in method.split("+"))]))


def seed_list(cfg: DictConfig) -> list[int]:
    """The seeds of a comparison: a list as it stands, a number ``n`` as ``seed, seed + 1, …`` (``n`` of them)."""
    seeds = cfg.seeds
    values = [cfg.seed + place for place in range(seeds)] if isinstance(seeds, int) else list(seeds or [])
    if not values or any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in values):
        raise ConfigError(f"seeds must be a number of runs of at least 1 or a list like seeds=[0,1,2], got {seeds!r}")
    if len(set(values)) < len(values):
        raise ConfigError(f"seeds must all differ, got {values}")
    return values


def baseline_name(cfg: DictConfig) -> str | None:
    """The method that the others are tested against, if there is one."""
    return str(cfg.baseline) if cfg.baseline else None


def methods(cfg: DictConfig, options: Sequence[str]) -> dict[str, list[str]]:
    """Method -> loss recipes, the baseline first if the list leaves it out.

    Without a list these are the usual ones, with a budget those that ``search`` has values for.
    """
    names = cfg.losses
    if names is None:
        names = list(dict.fromkeys([*cfg.search.loss, *cfg.search.weights])) if cfg.budget is not None else list(_USUAL)
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"losses must be a list of loss recipes, like 'losses=[ce,kd,kd+nd]', got {names!r}")
    names = list(dict.fromkeys([*([cfg.baseline] if cfg.baseline else []), *names]))
    found = {name: method_losses(name, list(cfg.base or [])) for name in names}
    for name, losses in found.items():
        unknown = [loss for loss in losses if loss not in options]
        if unknown:
            raise ConfigError(
                f"losses: {name!r} names no loss recipe {unknown[0]!r}{did_you_mean(unknown[0], options)}"
            )
    return found


def with_losses(composer: Composer, config_name: str, overrides: Sequence[str]) -> str:
    """The override ``loss=[…]`` that chooses every loss of a comparison, so that all their settings can be typed."""
    parsed = composer.parse(overrides)
    if any(override.key_or_group == "loss" for override in parsed):
        raise ConfigError("kdkit compare takes its losses as a list of methods: 'losses=[ce,kd,kd+nd]', not as loss=…")
    kept = [
        str(override.input_line)
        for override in parsed
        if override.key_or_group.split(".")[0] not in _PER_LOSS and not override.is_sweep_override()
    ]
    found = methods(composer.compose(config_name, kept), composer.options("loss"))
    return f"loss=[{','.join(dict.fromkeys(loss for losses in found.values() for loss in losses))}]"


def method_configs(cfg: DictConfig, context: Context, left_out: dict[str, str] | None = None) -> dict[str, DictConfig]:
    """Checked settings of every method of a comparison, the baseline among them.

    A typed setting of a loss (``loss.kd.temperature=4``, ``weights.kd=0.5``) goes to the methods that have the loss.

    Args:
        cfg: settings of ``kdkit compare``.
        context: how it was called.
        left_out: takes method -> reason of those (but the baseline) that do not fit, which is then no error.

    Raises:
        ConfigError: if a method does not exist or its settings make no sense.
    """
    composer = Composer(context.recipes, context.config_dir)
    found = methods(cfg, composer.options("loss"))
    parsed = composer.parse(context.overrides)
    general = [str(o.input_line) for o in parsed if o.key_or_group.split(".")[0] not in (*_OWN, *_PER_LOSS)]
    special = [o for o in parsed if o.key_or_group.split(".")[0] in _PER_LOSS and o.key_or_group != "loss"]
    configs = {}
    for name, losses in found.items():
        overrides = [*general, f"loss=[{','.join(losses)}]"]
        chosen = composer.compose(context.config_name, overrides)
        own = [str(override.input_line) for override in special if _belongs(override, chosen)]
        part = replace(context, command="distill", overrides=(*overrides, *own))
        try:
            chosen = composer.compose(context.config_name, part.overrides) if own else chosen
            configs[name] = prepare(_on_the_data(chosen), part)
        except ConfigError as error:
            if left_out is None or name == baseline_name(cfg):
                raise ConfigError(f"method {name!r}: {error}") from error
            left_out[name] = str(error)
    return configs


def _on_the_data(chosen: DictConfig) -> DictConfig:
    """The settings; without a strategy where no loss learns from a teacher, so that such a student is one alone."""
    if chosen.get("strategy") is None:
        return chosen
    losses = [instantiate(block, where=f"loss.{name}") for name, block in chosen.loss.items() if "_target_" in block]
    if not any(loss.needs_teacher for loss in losses):
        with unlocked(chosen):
            chosen.strategy = None
    return chosen


def _belongs(override: Override, chosen: DictConfig) -> bool:
    """Whether a typed setting of a loss, a weight or a feature pair has its loss or pair in these settings."""
    block, name, *_ = [*override.key_or_group.split("."), ""]
    losses = {"weights": "loss", "teacher_weights": "teacher_loss"}.get(block, block)
    if block == "features":
        return name in chosen.features or bool(override.is_add() or override.is_force_add())
    return "_target_" in (chosen[losses].get(name) or {})  # an experiment may tune losses that are not chosen
