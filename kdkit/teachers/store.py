"""A content-addressed store: what is expensive to make (trained teachers, class means) is made once and kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from kdkit import __version__
from kdkit._files import atomic_dir, sha256_file, sha256_json, to_json
from kdkit.errors import InputError, KdkitWarning

__all__ = ["Content", "Store"]

Content = bytes | str | Mapping[str, Tensor]
"""What a file of an entry may hold: bytes, text (UTF-8), or named tensors (written as safetensors)."""

_DEFINITION = "definition.json"
_MANIFEST = "manifest.json"


class Store:
    """Folders addressed by the hash of what defines them: ``<root>/<kind>/<sha256 of the definition>/``.

    An entry holds its files, ``definition.json`` (readable) and ``manifest.json`` (size and SHA-256 of each file).
    Entries appear whole or not at all; several processes may write the same one, the first wins, without a lock.

    Args:
        root: the folder; by default the environment variable ``KDKIT_STORE``, else ``~/.cache/kdkit``.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("KDKIT_STORE") or Path.home() / ".cache" / "kdkit").expanduser()

    @staticmethod
    def key(definition: Mapping[str, Any]) -> str:
        """SHA-256 (hex) of the definition's canonical JSON; key order does not matter, every value does."""
        return sha256_json(definition)

    def path(self, kind: str, definition: Mapping[str, Any]) -> Path:
        """Where the entry lies or would lie."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", kind):
            raise InputError(
                f"Store: kind must be lower-case letters, digits, '.', '_' and '-', got {kind!r}; try 'teacher'"
            )
        return self.root / kind / self.key(definition)

    def find(self, kind: str, definition: Mapping[str, Any]) -> Path | None:
        """The folder of an entry whose every file matches its checksum, or ``None``.

        A damaged entry is reported with a warning and counts as missing; :meth:`put` replaces it.
        """
        path = self.path(kind, definition)
        if not path.is_dir():
            return None
        damage = _damage(path)
        if damage is None:
            return path
        warnings.warn(f"store entry {path} is damaged ({damage}) and will be made again", KdkitWarning, stacklevel=2)
        return None

    def put(self, kind: str, definition: Mapping[str, Any], files: Mapping[str, Content]) -> Path:
        """Keep files under their definition.

        Args:
            kind: sort of entry, e.g. ``"teacher"``.
            definition: everything that the content depends on, JSON-able.
            files: name (may contain ``/``) -> bytes, text, or a mapping of tensors, written as safetensors.

        Returns:
            The entry's folder: the one written before, when an intact one is there.

        Raises:
            InputError: when the store cannot be written, or a name leaves the entry's folder.
        """
        path = self.path(kind, definition)
        for name in files:
            _check_name(name)
        damaged = path.is_dir() and _damage(path) is not None
        try:
            with atomic_dir(path, existing="replace" if damaged else "keep") as folder:
                for name, content in files.items():
                    _write(folder / name, content)
                _write(folder / _DEFINITION, to_json(definition, indent=2) + "\n")
                _write(folder / _MANIFEST, to_json(_manifest(folder), indent=2) + "\n")
        except (InputError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            raise self._unwritable(getattr(cause, "strerror", None) or error) from error
        return path

    def remove(self, kind: str, definition: Mapping[str, Any]) -> None:
        """Drop an entry, if it is there."""
        shutil.rmtree(self.path(kind, definition), ignore_errors=True)

    def check_writable(self) -> None:
        """Raise now, rather than after an hour of training, when nothing could be kept."""
        probe = self.root / f".probe-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise self._unwritable(error.strerror or error) from error

    def _unwritable(self, reason: object) -> InputError:
        return InputError(
            f"Store: the folder {self.root} must be writable ({reason}); set KDKIT_STORE to a folder that is"
        )


def _check_name(name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or name in (_DEFINITION, _MANIFEST):
        raise InputError(
            f"Store.put: file names must stay inside the entry and differ from {_DEFINITION} and {_MANIFEST}, "
            f"got {name!r}; use a plain relative name"
        )


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Mapping):
        from safetensors.torch import save_file

        save_file(_own_memory(content), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that share no storage, as safetensors demands; only those that do share are copied."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
            storage = tensor.untyped_storage()
        seen.add(storage.data_ptr())
        result[name] = tensor
    return result


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "kdkit": __version__,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in files
        },
    }


def _damage(path: Path) -> str | None:
    """What is wrong with an entry, or ``None``."""
    try:
        files = json.loads((path / _MANIFEST).read_bytes())["files"]
        if _DEFINITION not in files:
            return f"{_MANIFEST} does not list {_DEFINITION}"
        for name, entry in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != entry["bytes"] or sha256_file(path / name) != entry["sha256"]:
                return f"{name} does not match its checksum"
        definition = json.loads((path / _DEFINITION).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} cannot be read: {error or type(error).__name__}"
    if sha256_json(definition) != path.name:
        return f"{_DEFINITION} belongs to another entry"
    return None
