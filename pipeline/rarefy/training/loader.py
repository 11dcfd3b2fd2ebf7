"""Reads the next steps' pixels in background threads, so that the device does not wait for the disk."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import torch

from rarefy.training.data import Batch, Pixels, TrainingSet, read_pixels, to_batch
from rarefy.training.settings import TrainSettings

WORKERS = 4
AHEAD = 4  # steps whose pixels wait in memory


class Loader:
    """The batches of a run from one step on; use as a context manager.

    Background threads read images that are memory-mapped or go to a GPU. Images in memory for the CPU are read when
    they are needed, because there a thread would only compete with the step. The batches are the same either way.
    """

    def __init__(self, data: TrainingSet, settings: TrainSettings, device: torch.device) -> None:
        self.data, self.settings, self.device = data, settings, device
        ahead = device.type == "cuda" or isinstance(data.source.images, np.memmap)
        self._pool = ThreadPoolExecutor(WORKERS, "loader") if ahead else None
        self._waiting: dict[int, Future[Pixels]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches of the steps from ``first`` to the last."""
        for step in range(first, self.settings.steps):
            yield to_batch(self._pixels(step), step, self.settings, self.device)

    def _pixels(self, step: int) -> Pixels:
        if self._pool is None:
            return self._read(step)
        for later in range(step, min(step + 1 + AHEAD, self.settings.steps)):
            if later not in self._waiting:
                self._waiting[later] = self._pool.submit(self._read, later)
        return self._waiting.pop(step).result()

    def _read(self, step: int) -> Pixels:
        pixels = read_pixels(self.data, step, self.settings)
        if self.device.type != "cuda":
            return pixels
        return Pixels(pixels.images.pin_memory(), pixels.labels.pin_memory())  # so that the copy need not wait
