"""Batches: which images a step sees, and this process's share of the images and of the random numbers.

Random numbers are drawn for the whole batch from a generator seeded by (seed, step), and each process takes its share.
So a resumed run continues as if it had not stopped, and the number of processes does not change what is learned.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rarefy.images import LabelledImages
from rarefy.training.settings import TrainSettings

HASHED_ROWS = 4096  # at a time, so that hashing a memory-mapped set needs little memory


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Images to train on: some rows of a source, which may be memory-mapped.

    excluded: number of the source's images that are left out because they are held out.
    """

    source: LabelledImages
    rows: NDArray[np.int64]
    excluded: int = 0

    @classmethod
    def whole(cls, source: LabelledImages) -> TrainingSet:
        """All images of a source."""
        return cls(source, np.arange(len(source)))

    def __len__(self) -> int:
        return len(self.rows)

    def sha256(self, step: Callable[[int, int], None] | None = None) -> str:
        """Hash of all pixels and labels, in order; equal to the source's if no image is left out.

        step: called with the number of images hashed so far and their total.
        """
        digest = hashlib.sha256()
        for first in range(0, len(self), HASHED_ROWS):
            digest.update(self.source.images[self.rows[first : first + HASHED_ROWS]].tobytes())
            if step is not None:
                step(min(first + HASHED_ROWS, len(self)), len(self))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class ids."""
        return self.source.labels[self.rows]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.source.class_names))


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

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in ``count`` micro-batches of equal size. Each image gets the random numbers that it would get in
        the whole batch."""
        for part in range(count):
            share = slice(part, None, count)
            place = self.rank + self.world * part, self.world * count
            yield Batch(self.x_0[share], self.y[share], self.generator.clone_state(), *place)


@dataclass(frozen=True, eq=False)
class Pixels:
    """This process's share of a step's batch, as it is in the data. images: (B, C, H, W) uint8; labels: (B,) int64."""

    images: Tensor
    labels: Tensor


def place() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) if training is not distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batch_rows(data: TrainingSet, step: int, settings: TrainSettings) -> NDArray[np.int64]:
    """Rows of a step's batch: consecutive slices of the data, in a new order in each epoch."""
    position = np.arange(step * settings.batch, (step + 1) * settings.batch)
    epochs, offsets = position // len(data), position % len(data)
    rows = np.empty(settings.batch, np.int64)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _order(data, settings.seed, int(epoch), settings.balance)[offsets[epochs == epoch]]
    return rows


@functools.lru_cache(maxsize=2)  # a batch can span two epochs
def _order(data: TrainingSet, seed: int, epoch: int, balance: float) -> NDArray[np.int64]:
    """The rows of an epoch, which has as many images as the data. With balance, classes get shares of their own."""
    rng = np.random.default_rng((seed, epoch))
    if balance == 0:
        return data.rows[rng.permutation(len(data))]
    present, counts = np.unique(data.labels, return_counts=True)
    weights = counts ** (1.0 - balance)
    quotas = rng.multinomial(len(data), weights / weights.sum())
    chosen = [_repeated(rng, data.rows[data.labels == k], q) for k, q in zip(present, quotas, strict=True)]
    return rng.permutation(np.concatenate(chosen))


def _repeated(rng: np.random.Generator, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of the rows: each as often as any other, or once more."""
    whole, rest = divmod(count, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.permutation(rows)[:rest]])


def read_pixels(data: TrainingSet, step: int, settings: TrainSettings) -> Pixels:
    """This process's share of a step's pixels, on the CPU."""
    rank, world = place()
    rows = batch_rows(data, step, settings)[rank::world]
    return Pixels(torch.from_numpy(data.source.images[rows]), torch.from_numpy(data.source.labels[rows]))


def to_batch(pixels: Pixels, step: int, settings: TrainSettings, device: torch.device) -> Batch:
    """The share on the device, scaled for the model, mirrored and shifted as the settings say."""
    x_0 = pixels.images.to(device, non_blocking=True).float() / 127.5 - 1
    generator = torch.Generator(device=device).manual_seed(_stream(settings.seed, step, 0))
    batch = Batch(x_0, pixels.labels.to(device, non_blocking=True), generator, *place())
    if settings.flip:
        mirrored = batch.draw(torch.rand) < 0.5
        x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
    if settings.crop:
        x_0 = shifted(x_0, batch.draw(partial(torch.randint, 2 * settings.crop + 1), 2), settings.crop)
    return Batch(x_0, batch.y, generator, batch.rank, batch.world)


def make_batch(data: TrainingSet, step: int, settings: TrainSettings, device: torch.device) -> Batch:
    """This process's share of a step's batch; equal arguments give equal batches."""
    return to_batch(read_pixels(data, step, settings), step, settings, device)


def shifted(x: Tensor, offsets: Tensor, crop: int) -> Tensor:
    """Images of the same size, cut out of their reflections around the border.

    x: (B, C, H, W); offsets: (B, 2) from 0 to 2 crop, the first row and column that is kept; crop leaves all as it is.
    """
    padded = F.pad(x, (crop, crop, crop, crop), mode="reflect")
    height, width = (torch.arange(side, device=x.device) for side in x.shape[2:])
    rows, columns = (offsets[:, :1] + height)[:, None, :, None], (offsets[:, 1:] + width)[:, None, None, :]
    image, channel = (torch.arange(n, device=x.device) for n in x.shape[:2])
    return padded[image[:, None, None, None], channel[None, :, None, None], rows, columns]


def dropout_seed(step: int, settings: TrainSettings) -> int:
    """Seed of a step's dropout masks. It differs between processes, unlike that of the batch."""
    return _stream(settings.seed, step, 1 + place()[0])


def _stream(seed: int, step: int, number: int) -> int:
    """A generator's seed, hashed because torch's CPU generator uses only the low 32 bits."""
    return int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0])
