"""Files that are whole or absent: atomic writes, hashes, JSON that stays valid JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal

from kdkit.errors import ConfigError, InputError, KdkitWarning

__all__ = [
    "append_jsonl",
    "atomic_dir",
    "clean_temporaries",
    "installed_folder",
    "jsonable",
    "read_jsonl",
    "sha256_file",
    "sha256_json",
    "to_json",
    "write_atomic",
    "write_json",
]

_MARK = ".tmp-"


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a file whole or not at all: temporary sibling, fsync, rename, fsync of the folder.

    Args:
        path: the file; missing parent folders are made.
        content: bytes, or text that is written as UTF-8.

    Returns:
        ``path``.

    Raises:
        InputError: when the place cannot be written; an older file is then still there, untouched.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def atomic_dir(path: str | Path, *, existing: Literal["refuse", "keep", "replace"] = "refuse") -> Iterator[Path]:
    """A folder that appears whole or not at all.

    ``with atomic_dir("step-100") as folder:`` gives an empty temporary sibling to write into. At the end every
    file and folder in it is fsynced and the sibling is renamed; after an error it is removed and the error goes on.

    Args:
        path: the folder to make; missing parent folders are made.
        existing: what to do with a folder that is already there: ``"refuse"`` raises before anything is written
            (and again if one appeared meanwhile), ``"keep"`` leaves it and drops the new one (the first of several
            writers wins), ``"replace"`` puts the new one in its place (two renames: a kill between them leaves the
            old folder under its temporary name; of two writers at the same instant the first wins).

    Raises:
        InputError: when the place cannot be written, or the folder exists and is to be refused.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        if existing == "refuse" and path.exists():
            raise _exists(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise _unwritable(path, error) from error
        yield temporary
        try:
            _sync_tree(temporary)
            _rename_folder(temporary, path, existing)
            _sync_folder(path.parent)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clean_temporaries(folder: str | Path) -> None:
    """Remove what killed writers left in a folder; only for folders that nobody else is writing to."""
    for path in Path(folder).glob(f".*{_MARK}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def installed_folder(name: str) -> str:
    """The folder that ``"package:NAME/FOLDER"`` means, inside an installed Python package, which is not imported.

    Raises:
        ConfigError: if the package is not installed, or has no such folder.
    """
    package, _, inside = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"{name!r} needs the Python package {package!r}, which is not installed; "
            f"run `pip install {package.replace('_', '-')}`"
        )
    folder = Path(next(iter(found.submodule_search_locations)), inside)
    if not folder.is_dir():
        raise ConfigError(f"{name!r}: the package {package!r} holds no folder {inside!r}; correct the name")
    return str(folder)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(obj: Any) -> str:
    """SHA-256 of an object's canonical JSON (sorted keys, no spaces, UTF-8), as hex.

    ``1`` and ``1.0`` hash differently; tuples and lists, and mappings in another order, hash alike.

    Raises:
        InputError: for what :func:`jsonable` refuses, and for NaN and infinities, which JSON cannot tell apart.
    """
    try:
        text = json.dumps(
            _convert(obj, "$", finite=False), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError("sha256_json: numbers must be finite, got NaN or infinity; leave the entry out") from error
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(obj: Any, *, indent: int | None = None) -> str:
    """Valid JSON of an object: :func:`jsonable` first, so NaN and infinities become ``null``."""
    return json.dumps(jsonable(obj), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: str | Path, obj: Any) -> Path:
    """Write readable JSON atomically; NaN and infinities become ``null``."""
    return write_atomic(path, to_json(obj, indent=2) + "\n")


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file with a single write; NaN and infinities become ``null``.

    Several processes may append to one file. After a line that was cut off by a kill the new one starts afresh.

    Raises:
        InputError: when the file cannot be written.
    """
    path = Path(path)
    line = to_json(record).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                if os.read(descriptor, 1) != b"\n":
                    line = b"\n" + line
            written = os.write(descriptor, line)
            while written < len(line):
                written += os.write(descriptor, line[written:])
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file, in order; a missing file gives an empty list.

    A torn last line (a writer was killed) is left out silently, a damaged line before it with a warning.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError:
            if number < len(lines):
                warnings.warn(f"{path}: line {number} is damaged and was left out", KdkitWarning, stacklevel=2)
            continue
        records.append(record)
    return records


def jsonable(obj: Any) -> Any:
    """The same object in JSON's own types.

    Mappings (OmegaConf's too) become dicts with string keys, sequences lists, sets sorted lists, dataclasses dicts,
    paths, dtypes and devices strings, tensors and arrays (nested) lists, NaN and infinities ``None``.

    Raises:
        InputError: for anything else, with the place where it sits.
    """
    return _convert(obj, "$", finite=True)


def _convert(obj: Any, place: str, *, finite: bool) -> Any:
    if obj is None or isinstance(obj, str | bool | int):
        return obj
    if isinstance(obj, float):
        return None if finite and not math.isfinite(obj) else float(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): _convert(value, f"{place}.{key}", finite=finite) for key, value in obj.items()}
    if isinstance(obj, AbstractSet):
        obj = sorted(obj, key=str)
    if isinstance(obj, list | tuple) or type(obj).__name__ == "ListConfig":
        return [_convert(value, f"{place}[{index}]", finite=finite) for index, value in enumerate(obj)]
    if isinstance(obj, os.PathLike) or type(obj).__module__ == "torch":
        text = _torch_text(obj)
        if text is not None:
            return text
    if callable(getattr(obj, "tolist", None)):  # tensors, arrays and their scalars
        return _convert(obj.tolist(), place, finite=finite)
    raise InputError(
        f"jsonable: {place} must be made of numbers, text, lists and mappings, got {type(obj).__name__} {obj!r:.80}; "
        "convert it first"
    )


def _torch_text(obj: Any) -> str | None:
    if isinstance(obj, os.PathLike):
        return str(os.fspath(obj))
    return str(obj) if type(obj).__name__ in ("dtype", "device", "Size") else None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}")


def _rename_folder(source: Path, target: Path, existing: str) -> None:
    """Rename a folder, settling who wins without a lock: a rename onto a folder that is not empty fails."""
    old = _temporary(target)
    if existing == "replace":
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)
    try:
        source.rename(target)
    except OSError as error:
        if not target.is_dir():  # nobody else was faster: a real failure
            with contextlib.suppress(FileNotFoundError):
                old.rename(target)
            raise
        if existing == "refuse":
            raise _exists(target) from error
    shutil.rmtree(old, ignore_errors=True)


def _usual_permissions() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


_PERMISSIONS = _usual_permissions()
"""Some writers (safetensors) make files that nobody but their owner may read."""


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if not path.is_symlink():
                path.chmod(_PERMISSIONS)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> InputError:
    return InputError(f"{path} must not exist yet, but it does; choose another name or remove it")


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"{path} cannot be written ({reason}); choose a place that you may write to and that has room")
