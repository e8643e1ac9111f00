"""The folder that kdkit keeps things in between runs: ``$KDKIT_STORE``, else ``~/.cache/kdkit``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from kdkit._files import atomic_dir
from kdkit.errors import InputError, KdkitWarning

__all__ = ["keep", "store"]


def store(*parts: str) -> Path:
    """A path inside the store; nothing is created."""
    root = os.environ.get("KDKIT_STORE")
    return Path(root).expanduser().joinpath(*parts) if root else Path.home().joinpath(".cache", "kdkit", *parts)


def keep(folder: Path, write: Callable[[Path], object]) -> bool:
    """Let ``write`` fill a folder that appears whole or not at all, in place of an older one.

    What a data set keeps can be made again, so a place that can't be written to costs a warning, not the run.

    Returns:
        Whether the folder was kept.
    """
    try:
        with atomic_dir(folder, existing="replace") as temporary:
            write(temporary)
    except (InputError, OSError) as error:
        text = f"{folder} is not kept ({error}); set KDKIT_STORE to a folder with room"
        warnings.warn(text, KdkitWarning, stacklevel=2)
        return False
    return True
