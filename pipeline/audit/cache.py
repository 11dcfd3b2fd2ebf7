"""Arrays that cost minutes and never change (a reference's features), kept on the user's disk by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.user_cache import user_cache

Arrays = Mapping[str, NDArray[np.generic]]


def cache_folder() -> Path:
    """``audit`` in the user's cache; it may not exist or be writable."""
    return user_cache() / "audit"


def array_digest(array: NDArray[np.generic]) -> str:
    """sha256 of an array's type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def cached(parts: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
    """``compute()``, or what it gave earlier for the same ``parts`` (everything that its result depends on).

    An entry that cannot be read is computed anew; a folder that cannot be written costs the time and nothing else.
    """
    if (stored := recall(parts)) is not None:
        return stored
    found = compute()
    with contextlib.suppress(OSError):
        _write(_entry(parts), found)
    return found


def recall(parts: tuple[str, ...]) -> Arrays | None:
    """What is kept for ``parts``; None where nothing is or it cannot be read."""
    try:
        with np.load(_entry(parts), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _entry(parts: tuple[str, ...]) -> Path:
    return cache_folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]}.npz"


def _write(path: Path, arrays: Arrays) -> None:
    """Write to a private name first, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, private = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        Path(private).replace(path)
    except OSError:
        Path(private).unlink()
        raise
