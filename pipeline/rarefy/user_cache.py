"""Where on the user's disk the things are kept that cost time and never change."""

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
        except RuntimeError:  # a user without a home has nowhere to keep anything
            base = Path(os.devnull)
    return base / "rarefy"


def keep(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a private name first, so that no reader meets half a file. Raises OSError and leaves nothing then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, private = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(private).replace(path)
    except OSError:
        Path(private).unlink()
        raise
