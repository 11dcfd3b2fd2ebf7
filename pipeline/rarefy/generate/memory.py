"""Running out of GPU memory: the error says which batch would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rarefy.device import free_bytes, peak_bytes, reset_peak
from rarefy.errors import DeviceError, bad

MEMORY_SHARE = 0.8  # of the free memory: allocators round up


@contextmanager
def loading(device: torch.device) -> Iterator[None]:
    """While networks are loaded: raises DeviceError if they do not fit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"device: {str(device)!r} has too little memory for this model: {_reason(error)}") from error


class BatchMemory:
    """What the batches on one device need. Create it when the networks are loaded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        reset_peak(device)
        self._base, self._needed = self._used(), 0
        self._largest = 0  # images of the largest batch that fitted

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """While a batch is sampled: raises DeviceError, which names ``sampler.batch`` and a size that would fit."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(self._message(images, _reason(error))) from error
        if images > self._largest:
            self._largest, self._needed = images, peak_bytes(self.device) - self._base

    def _message(self, images: int, reason: str) -> str:
        if images == 1:
            return f"{bad('sampler.batch', 1, f'small enough for the memory of {self.device}')} ({reason})"
        free = free_bytes(self.device) + self._used() - self._base
        size = fitting_batch(images, self._needed / self._largest if self._largest else None, free)
        allowed = f"small enough for the memory of {self.device}: about {size} should fit"
        return f"{bad('sampler.batch', images, allowed)} ({reason})"

    def _used(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def fitting_batch(images: int, bytes_per_image: float | None, free: int) -> int:
    """A batch size for ``free`` bytes: half of the one that failed, or less by what an image is known to need."""
    half = images // 2
    return max(1, min(half, int(MEMORY_SHARE * free / bytes_per_image)) if bytes_per_image else half)


def _reason(error: torch.OutOfMemoryError) -> str:
    return " ".join(str(error).split()).split(". ")[0]
