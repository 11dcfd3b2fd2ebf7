"""The user's cache folder, for files that are slow to make and never change."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def private_cache(name: str) -> Path | None:
    """The cache's folder for code that this process runs, made if necessary; None if it cannot be trusted or written.

    It must belong to the user, must not be a link, and nobody else may read or write it.
    """
    folder = user_cache() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if own and os.access(folder, os.W_OK | os.X_OK) else None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time. The lock ends with the process, whatever happens to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write to a temporary name, then rename, so that no reader sees half a file. After an error no file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, private = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        Path(private).replace(path)
    except BaseException:
        Path(private).unlink(missing_ok=True)
        raise
