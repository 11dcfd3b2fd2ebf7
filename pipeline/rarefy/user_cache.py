"""The user's cache folder, for files that are slow to make and never change."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/rarefy``, by default under ``~/.cache``; it may not exist or be writable."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the XDG rules ignore a relative path
        try:
            base = Path("~/.cache").expanduser()
        except RuntimeError:  # a user without a home directory has no cache
            base = Path(os.devnull)
    return base / "rarefy"


def keep(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a temporary name, then rename, so that no reader sees half a file. After an OSError no file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, private = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(private).replace(path)
    except OSError:
        Path(private).unlink()
        raise
