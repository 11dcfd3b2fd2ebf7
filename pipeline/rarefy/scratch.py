"""Temporary folders that are removed even if the process that made them is killed.

Each is private to the user and has a file that its process keeps locked. Whoever comes next removes the folders whose
lock is free; this works across containers that share a folder, where process ids do not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "rarefy-tmp-"
LOCK = "lock"
YOUNG_S = 3600.0  # a folder without a lock file may just have been made

# Opening another user's link or FIFO must neither follow it nor wait for its other end.
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def scratch_folder(prefix: str = PREFIX, where: Path | None = None) -> Iterator[Path]:
    """A new folder of mode 0700 in ``where`` (default: the system's temporary folder), removed afterwards."""
    folder, lock = _new_folder(prefix, where)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(prefix: str = PREFIX, where: Path | None = None, end: Callable[[Path], object] | None = None) -> None:
    """Remove the folders of processes that were killed. end: called with each folder first, to end what still uses it.

    Other users' folders and those of live processes stay.
    """
    for folder in (where or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
        with suppress(OSError):  # locked, another user's, or just removed by another process
            _remove_if_dead(folder, end)


def _new_folder(prefix: str, where: Path | None) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | _SAFE, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(OSError):
            if (folder / LOCK).stat().st_ino == os.fstat(lock).st_ino:
                return folder, lock
        os.close(lock)  # another process swept the folder before it was locked


def _remove_if_dead(folder: Path, end: Callable[[Path], object] | None) -> None:
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    try:
        status = os.fstat(place)
        if status.st_uid != os.getuid():
            return
        try:
            lock = os.open(LOCK, os.O_RDWR | _SAFE, dir_fd=place)
        except FileNotFoundError:
            if time.time() - status.st_mtime > YOUNG_S:
                shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            if stat.S_ISREG(os.fstat(lock).st_mode):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if end is not None:
                    end(folder)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    finally:
        os.close(place)
