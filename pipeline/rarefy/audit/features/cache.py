"""Arrays that cost minutes and never change (a reference's features), kept on the user's disk by content."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarefy.user_cache import keep, user_cache

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
        keep(_entry(parts), lambda file: np.savez(file, allow_pickle=False, **found))
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
