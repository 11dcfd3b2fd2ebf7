"""Decoded images with their labels and the names of their classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

HASHED_ROWS = 4096  # at a time, so that hashing a memory-mapped set needs little memory


def pixel_digest(image: NDArray[np.uint8]) -> bytes:
    """Hash of one image's pixels, by which exact copies are recognised."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, C, H, W) uint8, possibly memory-mapped; labels: (N,) int64; class_names: one per class id.

    keys: one name per image: its file within the folder or its key within the shards; empty if images have no names.
    broken: names of the images that were left out because they cannot be read; empty unless the caller allowed it.
    skipped: what else the data have, one text per reason (``skipped_lines``).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    keys: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> LabelledImages:
        """These rows, in the given order, copied into memory."""
        keys = tuple(self.keys[row] for row in rows) if self.keys else ()
        return replace(self, images=self.images[rows], labels=self.labels[rows], keys=keys)

    def sha256(self) -> str:
        """Hash of all pixels and labels, in order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), HASHED_ROWS):
            digest.update(self.images[start : start + HASHED_ROWS].tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()
