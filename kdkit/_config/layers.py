"""The layers of a network, with the shapes that they have for one sample of the chosen data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit._config.build import instantiate, plain
from kdkit._config.compose import Composer
from kdkit._config.explain import Failed, explain
from kdkit._config.safety import typed_trust
from kdkit._config.trust import trusting
from kdkit.errors import ConfigError

if TYPE_CHECKING:
    from kdkit.features.taps import LayerInfo

__all__ = ["network_layers"]


def network_layers(words: Sequence[str], folders: Sequence[Path]) -> tuple[str, list[LayerInfo]]:
    """Build the network that the overrides describe and run it once.

    Args:
        words: overrides; ``model=NAME`` means ``student=NAME``. The teacher is shown if only ``teacher`` is named.
        folders: kdkit's recipes, then the user's folder if there is one.

    Returns:
        What was built, and its layers.
    """
    overrides = [re.sub(r"^model([=.])", r"student\1", word) for word in words]
    named = {re.split(r"[=.]", word.lstrip("+~"), maxsplit=1)[0] for word in overrides}
    side = "teacher" if "teacher" in named and "student" not in named else "student"
    composer = Composer(folders[0], folders[1] if len(folders) > 1 else None)
    try:
        cfg = composer.compose("config", overrides)
    except Exception as error:
        raise explain(error, Failed(composer, "config", overrides)) or error from error
    with trusting(typed_trust(overrides)):
        return _run(cfg, side)


def _run(cfg: Any, side: str) -> tuple[str, list[LayerInfo]]:
    from kdkit.features.stages import find_stages
    from kdkit.features.taps import LayerInfo, list_layers

    if cfg[side] is None or "model" not in cfg[side]:
        raise ConfigError(f"{side} is no network of its own; name one: kdkit ls layers {side}=resnet20")
    data = instantiate(cfg.data, where="data")
    for key in cfg.spec:
        if cfg.spec[key] is None:
            cfg.spec[key] = getattr(data.spec, str(key), None)
    _fits(cfg, side, data.spec.kind)
    task = instantiate(cfg.task, data.spec, where="task")
    module = instantiate(cfg[side].model, where=f"{side}.model")
    block = plain(cfg[side])
    network = task.wrap(module, normalization=block.get("normalization"), input_size=block.get("input_size"))
    example = task.example(next(iter(data.batches("train", 1, train=False))))
    name = f"{side}: {cfg[side].model._target_} for one sample of {data.name}"

    def run() -> object:
        return task.forward(network, example)

    stages = [
        LayerInfo(f"{what}.{number}", f"= {meaning}", stage.shape)
        for number, stage in enumerate(find_stages(network.module, run), start=1)
        for what, meaning in (("stage", stage.layer), ("preact", stage.preact))
    ]
    return name, list_layers(network.module, run) + stages


def _fits(cfg: Any, side: str, kind: str) -> None:
    """A language model needs a vocabulary, an image classifier needs classes."""
    keys = {str(node) for node in re.findall(r"spec\.(\w+)", str(cfg[side].model))}
    of_text, of_classes = bool(keys & {"vocab_size", "context"}), bool(keys & {"num_classes", "in_chans"})
    wanted = "labelled text" if of_text and of_classes else "text" if of_text else "image" if of_classes else kind
    if wanted != kind:
        ways = {"text": "experiment=stdlib_lm", "labelled text": "experiment=stdlib_labels"}
        way = ways.get(wanted, "data=digits task=classification")
        raise ConfigError(
            f"{side} is a network for {wanted}s and the data is of {kind}s; add {way}".replace("texts", "text")
        )
