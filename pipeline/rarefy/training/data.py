"""Batches: which images a step sees, and this process's share of the images and of the random numbers.

Random numbers are drawn for the whole batch from a generator seeded by (seed, step), and each process takes its share.
So a resumed run continues as if it had not stopped, and the number of processes does not change what is learned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from rarefy.images import LabelledImages
from rarefy.training.recipe import TrainSettings


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a batch: image number ``rank`` and every ``world``-th after it.

    x_0: (B, C, H, W) float32 in [-1, 1]; y: (B,) int64; generator: the step's random numbers.
    """

    x_0: Tensor
    y: Tensor
    generator: torch.Generator
    rank: int = 0
    world: int = 1

    def draw(self, sample: Callable[..., Tensor], *shape: int) -> Tensor:
        """Random numbers of ``shape`` per image, (B, *shape). sample: torch.randn or another function of a size."""
        size = (len(self.x_0) * self.world, *shape)
        return sample(size, generator=self.generator, device=self.x_0.device)[self.rank :: self.world]


def place() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) if training is not distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batch_rows(step: int, batch: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of a step's batch: consecutive slices of the data, in a new order in each epoch."""
    position = np.arange(step * batch, (step + 1) * batch)
    epochs, offsets = position // count, position % count
    rows = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _order(seed, int(epoch), count)[offsets[epochs == epoch]]
    return rows


@functools.lru_cache(maxsize=2)  # a batch can span two epochs
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def make_batch(data: LabelledImages, step: int, settings: TrainSettings, device: torch.device) -> Batch:
    """This process's share of a step's batch; equal arguments give equal batches."""
    rank, world = place()
    rows = batch_rows(step, settings.batch, len(data), settings.seed)[rank::world]
    x_0 = torch.from_numpy(data.images[rows]).to(device).float() / 127.5 - 1
    generator = torch.Generator(device=device).manual_seed(_stream(settings.seed, step, 0))
    return Batch(x_0, torch.from_numpy(data.labels[rows]).to(device), generator, rank, world)


def dropout_seed(step: int, settings: TrainSettings) -> int:
    """Seed of a step's dropout masks. It differs between processes, unlike that of the batch."""
    return _stream(settings.seed, step, 1 + place()[0])


def _stream(seed: int, step: int, number: int) -> int:
    """A generator's seed, hashed because torch's CPU generator uses only the low 32 bits."""
    return int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0])
