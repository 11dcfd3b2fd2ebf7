"""The batch size to put into a manifest: as large as it pays, within memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

GAIN = 0.05
LARGEST = 4096


class Measured(Protocol):
    """What :func:`find_batch` reads of a measurement."""

    @property
    def images_per_second(self) -> float: ...

    @property
    def peak_bytes(self) -> int: ...


M = TypeVar("M", bound=Measured)


@dataclass(frozen=True)
class BestBatch:
    """batch: what to write into the manifest; reason: why not the next larger one."""

    batch: int
    reason: str


def find_batch(
    measure: Callable[[int], M], first: int, resting_bytes: int, limit_bytes: int
) -> tuple[dict[int, M], BestBatch]:
    """Double the batch from ``first`` while that gains GAIN in images/s and the next one should fit ``limit_bytes``.

    resting_bytes: held with the models loaded and no batch. A next peak is the last one and, image by image, what the
    growth to it cost. Returns all that was measured, by batch, and the best.
    """
    found: dict[int, M] = {}
    batch, before_bytes, before = first, resting_bytes, 0
    while True:
        found[batch] = now = measure(batch)
        if before and now.images_per_second < (1 + GAIN) * found[before].images_per_second:
            gain = now.images_per_second / found[before].images_per_second - 1
            return found, BestBatch(before, f"{batch} changes images/s by {gain:+.1%}, less than {GAIN:.0%}")
        if 2 * batch > LARGEST:
            return found, BestBatch(batch, "the largest that is tried")
        an_image = max(now.peak_bytes - before_bytes, 0) / (batch - before)
        wanted = now.peak_bytes + batch * an_image
        if wanted > limit_bytes:
            text = f"{2 * batch} would take about {wanted / 1e9:.1f} GB of {limit_bytes / 1e9:.1f} GB"
            return found, BestBatch(batch, text)
        batch, before, before_bytes = 2 * batch, batch, now.peak_bytes
