"""One chunked k-NN pass over two feature matrices: who lies in whose neighbourhood, and how rare each sample is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audit.fidelity import Features
from pipeline.errors import DataError, bad

BLOCK_ELEMENTS = 1 << 24  # distances held at a time: 64 MiB of float32

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Manifold:
    """A feature matrix with the balls that its k-NN distances draw around each row.

    features (N, D); radius (N,): distance to the k-th nearest other row; mean_distance (N,): mean distance to the k
    nearest other rows (AvgkNN, Sehwag et al. 2022), large where the data are sparse.
    """

    features: Features
    k: int
    radius: Floats
    mean_distance: Floats


@dataclass(frozen=True)
class Neighborhood:
    """How a generated set (N rows) lies in a real one (M rows); distances in feature units.

    nearest, mean_distance (N,): distance to the nearest and mean distance to the k nearest real rows.
    balls (N,): number of real balls that hold the row; 0 means outside the real manifold.
    rarity (N,): the smallest radius among those balls (Han et al., ICLR 2023), NaN outside the manifold.
    recalled (M,): real row lies in some generated ball. covered (M,): real ball holds some generated row.
    """

    nearest: Floats
    mean_distance: Floats
    balls: NDArray[np.int64]
    rarity: Floats
    recalled: Bools
    covered: Bools

    @property
    def precision(self) -> float:
        """Share of generated rows inside the real manifold (Kynkaanniemi et al. 2019)."""
        return float((self.balls > 0).mean())

    @property
    def recall(self) -> float:
        """Share of real rows inside the generated manifold (Kynkaanniemi et al. 2019)."""
        return float(self.recalled.mean())

    def density(self, k: int) -> float:
        """Mean number of real balls a generated row lies in, over k (Naeem et al. 2020); may exceed 1."""
        return float(self.balls.mean() / k)

    @property
    def coverage(self) -> float:
        """Share of real balls that hold a generated row (Naeem et al. 2020)."""
        return float(self.covered.mean())


def build_manifold(features: Features, k: int) -> Manifold:
    """Radii and mean distances of each row's k nearest other rows. Raises DataError unless 1 <= k < N."""
    if not 1 <= k < len(features):
        raise DataError(bad("k", k, f"between 1 and {len(features) - 1}, one less than the images compared"))
    rows = _rows(features)
    radius, mean_distance = torch.empty(len(rows)), torch.empty(len(rows))
    for part, distances in _distance_blocks(rows, rows):
        inner = torch.arange(len(distances))
        distances[inner, inner + part.start] = torch.inf  # a row is not its own neighbour, duplicates are
        nearest = distances.topk(k, dim=1, largest=False).values
        radius[part], mean_distance[part] = nearest[:, -1], nearest.mean(dim=1)
    return Manifold(features, k, radius.numpy(), mean_distance.numpy())


def compare(generated: Manifold, real: Manifold) -> Neighborhood:
    """The cross pass between two manifolds of the same k and feature length."""
    rows, columns = _rows(generated.features), _rows(real.features)
    own_radius, real_radius = torch.from_numpy(generated.radius), torch.from_numpy(real.radius)
    nearest, mean_distance, rarity = (torch.empty(len(rows)) for _ in range(3))
    balls = torch.empty(len(rows), dtype=torch.int64)
    recalled = torch.zeros(len(columns), dtype=torch.bool)
    covered = torch.zeros(len(columns), dtype=torch.bool)
    for part, distances in _distance_blocks(rows, columns):
        inside = distances <= real_radius
        balls[part], covered = inside.sum(dim=1), covered | inside.any(dim=0)
        recalled |= (distances <= own_radius[part, None]).any(dim=0)
        rarity[part] = torch.where(inside, real_radius, torch.inf).amin(dim=1)
        closest = distances.topk(min(real.k, len(columns)), dim=1, largest=False).values
        nearest[part], mean_distance[part] = closest.amin(dim=1), closest.mean(dim=1)
    rarity[balls == 0] = torch.nan
    arrays = (nearest, mean_distance, balls, rarity, recalled, covered)
    return Neighborhood(*(array.numpy() for array in arrays))


def _rows(features: Features) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))


def _distance_blocks(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances (block, M) of a block of rows to all columns, with the block's place."""
    # Distances do not move with the origin, and the rounding of |a|^2 - 2ab + |b|^2 is smallest around the mean.
    center = columns.mean(dim=0)
    rows, columns = rows - center, columns - center
    block = max(1, BLOCK_ELEMENTS // len(columns))
    for start in range(0, len(rows), block):
        part = slice(start, min(start + block, len(rows)))
        yield part, torch.cdist(rows[part], columns)
