"""A disk cache for arrays that take minutes to compute and never change, such as a reference's features."""

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
    """``audit`` in the user's cache; it may be missing or read-only."""
    return user_cache() / "audit"


def array_digest(array: NDArray[np.generic]) -> str:
    """sha256 of an array's type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def cached(parts: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
    """``compute()``, or its cached result for the same ``parts``, which must name everything that it depends on.

    An unreadable entry is computed again. If the folder cannot be written, the result is not cached.
    """
    if (stored := recall(parts)) is not None:
        return stored
    arrays = compute()
    keep_arrays(parts, arrays)
    return arrays


def keep_arrays(parts: tuple[str, ...], arrays: Arrays) -> None:
    """Cache arrays under ``parts``, unless the folder cannot be written or a value is not finite.

    What a sick device computes must not come back in later audits.
    """
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return
    with contextlib.suppress(OSError):
        keep(_entry(parts), lambda file: np.savez(file, allow_pickle=False, **arrays))


def recall(parts: tuple[str, ...]) -> Arrays | None:
    """The cached arrays for ``parts``; None if there are none or they cannot be read."""
    try:
        with np.load(_entry(parts), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _entry(parts: tuple[str, ...]) -> Path:
    return cache_folder() / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]}.npz"
