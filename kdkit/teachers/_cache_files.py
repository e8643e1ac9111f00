"""A cache on disk: a manifest, and shards that each carry their own checksum."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit._files import atomic_dir, sha256_file, write_json
from kdkit.errors import CheckpointError, ConfigError, InputError

__all__ = [
    "MANIFEST",
    "Definition",
    "Shard",
    "id_dtype",
    "open_shard",
    "read_manifest",
    "read_shard",
    "refuse_difference",
    "sound",
    "write_manifest",
    "write_shard",
]

MANIFEST = "manifest.json"
FORMAT = 1
_FACTS, _TENSORS = "facts.json", "tensors.safetensors"


@dataclass(frozen=True, slots=True)
class Definition:
    """What a cache is of; two caches are the same if and only if their definitions are.

    Attributes:
        teacher: ``identity`` (SHA-256), ``name`` and ``origin``.
        data: ``name``, ``fingerprint`` and ``settings`` of the data.
        split: whose samples were answered.
        samples: their number.
        classes: classes, or size of the vocabulary.
        k: entries kept per position.
        temperature: of the softmax.
        dtype: of the log-probabilities on disk.
        precision: in which the teacher computed them.
        shard_samples: samples per shard.
    """

    teacher: Mapping[str, str]
    data: Mapping[str, Any]
    split: str
    samples: int
    classes: int
    k: int
    temperature: float
    dtype: str
    precision: str
    shard_samples: int

    @property
    def shards(self) -> int:
        """Their number."""
        return -(-self.samples // self.shard_samples)

    def identifying(self) -> dict[str, Any]:
        """The definition without what only explains it to people."""
        content = asdict(self)
        content["teacher"] = self.teacher["identity"]
        content["data"] = self.data["fingerprint"]
        return content


@dataclass(frozen=True, slots=True)
class Shard:
    """What is known about one shard without opening its tensors.

    Attributes:
        folder: where it lies.
        sha256: of the tensors' file.
        bytes: size of that file.
        positions: how many are kept.
        sums: over these, what the report on the cache averages; NaN for what is not known.
    """

    folder: Path
    sha256: str
    bytes: int
    positions: int
    sums: dict[str, float] = field(default_factory=dict)


def shard_folder(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:06d}"


def id_dtype(classes: int) -> torch.dtype:
    """The smallest that holds every class."""
    if classes <= 2**8:
        return torch.uint8
    return torch.uint16 if classes <= 2**16 else torch.int32


def write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor], sums: Mapping[str, float]) -> None:
    """Write a shard whole or not at all, in place of an older one."""
    from safetensors.torch import save_file

    with atomic_dir(shard_folder(folder, number), existing="replace") as place:
        save_file(dict(tensors), place / _TENSORS)
        facts = {
            "sha256": sha256_file(place / _TENSORS),
            "bytes": (place / _TENSORS).stat().st_size,
            "positions": len(tensors["rest"]),
            "sums": dict(sums),
        }
        write_json(place / _FACTS, facts)


def read_shard(folder: Path, number: int) -> Shard | None:
    """The facts of a shard; ``None`` if it is missing, or its file is not as long as it was."""
    place = shard_folder(folder, number)
    try:
        facts = json.loads((place / _FACTS).read_text())
        told = {name: facts["sums"][name] for name in ("rest", "kl")}
        sums = {name: math.nan if value is None else float(value) for name, value in told.items()}
        shard = Shard(place, facts["sha256"], facts["bytes"], facts["positions"], sums)
        return shard if (place / _TENSORS).stat().st_size == shard.bytes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sound(shard: Shard) -> bool:
    """Whether the tensors are those that were written."""
    try:
        return sha256_file(shard.folder / _TENSORS) == shard.sha256
    except OSError:
        return False


def open_shard(shard: Shard) -> dict[str, Tensor]:
    """Its tensors, mapped from the file.

    Raises:
        CheckpointError: if they are not those that were written.
    """
    from safetensors.torch import load_file

    if not sound(shard):
        raise CheckpointError(
            f"{shard.folder} is damaged: its content does not match its checksum; repeat the `kdkit cache` command "
            "that made the cache, which replaces damaged shards"
        )
    return load_file(shard.folder / _TENSORS)


def read_manifest(folder: Path) -> tuple[Definition, dict[str, Any]]:
    """What a cache is of, and everything that the manifest says.

    Raises:
        InputError: if the folder holds no cache, or one of another format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text())
        known, definition = content["format"], Definition(**content["definition"])
        _ = definition.shards, definition.teacher["identity"], definition.data["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise InputError(
            f"{folder} holds no cache of a teacher ({MANIFEST} is missing or unreadable); make one with kdkit cache, "
            "in another folder or after removing this one"
        ) from error
    if known != FORMAT:
        raise InputError(f"{folder} holds a cache of format {known}, and this kdkit reads {FORMAT}; make it again")
    return definition, content


def write_manifest(folder: Path, definition: Definition, facts: Mapping[str, Any]) -> None:
    """Write or replace the manifest."""
    write_json(folder / MANIFEST, {"format": FORMAT, "definition": asdict(definition), **facts})


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> str | None:
    """Where two nested mappings part first, in words: ``"data.context: 128 there, 256 here"``."""
    for key in [*old, *(key for key in new if key not in old)]:
        place, there, here = f"{path}{key}", old.get(key), new.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found = first_difference(there, here, path=f"{place}.")
            if found is not None:
                return found
        elif there != here:
            return f"{place}: {there!r} there, {here!r} here"
    return None


def refuse_difference(folder: Path, old: Definition, new: Definition, way_out: str) -> None:
    """Refuse a cache that is of something else.

    Raises:
        ConfigError: naming the first difference.
    """
    if old.identifying() == new.identifying():
        return
    left, right = asdict(old), asdict(new)
    for name in ("settings", "origin"):  # explain a difference, but are none by themselves
        for side in (left, right):
            for group in ("teacher", "data"):
                side[group] = {key: value for key, value in side[group].items() if key != name}
    settings = first_difference({"data": old.data.get("settings")}, {"data": new.data.get("settings")})
    same_data = old.data["fingerprint"] == new.data["fingerprint"]
    difference = settings if settings is not None and not same_data else first_difference(left, right)
    raise ConfigError(f"{folder} holds a cache of something else ({difference}); {way_out}")
