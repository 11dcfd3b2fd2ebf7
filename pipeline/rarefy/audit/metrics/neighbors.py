"""Neighbour search in two feature matrices: which rows lie in which k-NN balls, and how rare each row is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.search import Nearest, PointSet, Tile, exact_distances, point_set, tiles, true_pairs
from rarefy.errors import DataError, bad

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Manifold:
    """A feature matrix and the k-NN ball around each row.

    features (N, D); near, near_index (N, k): distances and rows of the k nearest other rows, nearest first.
    """

    features: Features
    k: int
    near: Floats
    near_index: Indices

    @property
    def radius(self) -> Floats:
        """(N,) distance to the k-th nearest other row."""
        return self.near[:, -1]

    @property
    def clipped_radius(self) -> Floats:
        """(N,) radius, at most the median radius: a ball around an outlier grows no larger (Salvy et al. 2025)."""
        return np.minimum(self.radius, np.median(self.radius))

    @property
    def mean_distance(self) -> Floats:
        """(N,) mean distance to the k nearest other rows (AvgkNN, Sehwag et al. 2022), large in sparse regions."""
        return np.asarray(self.near.mean(axis=1))

    @property
    def nearest(self) -> Floats:
        """(N,) distance to the nearest other row."""
        return self.near[:, 0]

    @property
    def nearest_index(self) -> Indices:
        """(N,) the nearest other row."""
        return self.near_index[:, 0]


@dataclass(frozen=True)
class Labelled:
    """A manifold with the classes (N,) of its rows."""

    manifold: Manifold
    labels: Indices

    def take(self, rows: Indices, device: str) -> Labelled:
        """These rows; neighbours are searched among them only."""
        return Labelled(build_manifold(self.manifold.features[rows], self.manifold.k, device), self.labels[rows])


@dataclass(frozen=True)
class Neighborhood:
    """A generated set (N rows) among the neighbourhoods of a real one (M rows); distances in feature units.

    nearest, nearest_index, mean_distance (N,): the nearest real row, and the mean distance to the k nearest.
    balls (N,): number of real balls that contain the row; 0 means outside the real manifold.
    rarity (N,): the smallest radius among those balls (Han et al., ICLR 2023), NaN outside the manifold.
    inside (M,): number of generated rows in the real ball.
    clipped_balls (N,), clipped_inside (M,): balls and inside with the real radii clipped at their median.
    recalled (M,): the real row lies in some generated ball.
    """

    nearest: Floats
    nearest_index: Indices
    mean_distance: Floats
    balls: Indices
    rarity: Floats
    inside: Indices
    clipped_balls: Indices
    clipped_inside: Indices
    recalled: Bools

    @property
    def precision(self) -> float:
        """Fraction of generated rows inside the real manifold (Kynkäänniemi et al. 2019)."""
        return float((self.balls > 0).mean())

    @property
    def recall(self) -> float:
        """Fraction of real rows inside the generated manifold (Kynkäänniemi et al. 2019)."""
        return float(self.recalled.mean())

    def density(self, k: int) -> float:
        """Mean number of real balls around a generated row, divided by k (Naeem et al. 2020); may exceed 1."""
        return float(self.balls.mean() / k)

    @property
    def covered(self) -> Bools:
        """(M,) the real ball contains some generated row."""
        return np.asarray(self.inside > 0)

    @property
    def coverage(self) -> float:
        """Fraction of real balls that contain a generated row (Naeem et al. 2020)."""
        return float(self.covered.mean())


def build_manifold(features: Features, k: int, device: str = "cpu") -> Manifold:
    """Find each row's k nearest other rows. Raises DataError unless 1 <= k < N and all features are finite."""
    if not 1 <= k < len(features):
        raise DataError(bad("k", k, f"between 1 and {len(features) - 1}, the number of images minus one"))
    rows = _rows(features, device)
    points, near = point_set(rows, rows.mean(dim=0)), Nearest(len(rows), k, rows.device)
    for tile in tiles(points, points):
        on_diagonal = tile.rows == tile.columns
        if on_diagonal:
            tile.lower.fill_diagonal_(torch.inf)  # a row is not its own neighbour, but its duplicates are
        mask = tile.lower <= near.reach(tile)[:, None]
        if on_diagonal:
            mask.fill_diagonal_(False)
        else:
            mask |= tile.lower <= near.reach(tile, dim=0)
        i, j = true_pairs(mask)
        above, left = j + tile.columns.start, i + tile.rows.start
        distances = exact_distances(rows, rows, (left, above))
        near.add(tile.rows, (i, above), distances)
        if not on_diagonal:
            near.add(tile.columns, (j, left), distances)
    return Manifold(features, k, near.distances.cpu().numpy(), near.index.cpu().numpy())


def find_neighbors(generated: Manifold, real: Manifold, device: str = "cpu") -> Neighborhood:
    """Find the generated rows' neighbours among the real rows, and which balls contain which rows.

    Memory: both feature matrices on the device, and tens of MiB. Raises DataError if the feature lengths differ.
    """
    rows, others = _rows(generated.features, device), _rows(real.features, device)
    if rows.shape[1] != others.shape[1]:
        raise DataError(bad("features", rows.shape[1], f"{others.shape[1]} long like the real ones"))
    center = others.mean(dim=0)
    crossing = _Crossing(point_set(rows, center), point_set(others, center), generated.radius, real)
    return crossing.result()


class _Crossing:
    """State of a search: the results so far for each generated row and each real row."""

    def __init__(self, rows: PointSet, columns: PointSet, own: Floats, real: Manifold) -> None:
        device, (generated, others) = rows.rows.device, (len(rows.rows), len(columns.rows))
        self._rows, self._columns = rows.rows, columns.rows
        self._own, self._radius, self._clipped = (
            torch.tensor(each, device=device) for each in (own, real.radius, real.clipped_radius)
        )
        self._near = Nearest(generated, min(real.k, others), device)
        self._rarity = torch.full((generated,), torch.inf, device=device)
        self._balls, self._clipped_balls = (_zeros(generated, device) for _ in range(2))
        self._inside, self._clipped_inside = (_zeros(others, device) for _ in range(2))
        self._recalled = torch.zeros(others, dtype=torch.bool, device=device)
        for tile in tiles(rows, columns):
            self._compare(tile)

    def result(self) -> Neighborhood:
        distances, index = self._near.distances.cpu().numpy(), self._near.index.cpu().numpy()
        return Neighborhood(
            nearest=distances[:, 0],
            nearest_index=index[:, 0],
            mean_distance=np.asarray(distances.mean(axis=1)),
            balls=self._balls.cpu().numpy(),
            rarity=self._rarity.masked_fill(self._balls == 0, torch.nan).cpu().numpy(),
            inside=self._inside.cpu().numpy(),
            clipped_balls=self._clipped_balls.cpu().numpy(),
            clipped_inside=self._clipped_inside.cpu().numpy(),
            recalled=self._recalled.cpu().numpy(),
        )

    def _compare(self, tile: Tile) -> None:
        """Select the pairs of a tile that may be below a threshold, and decide each of them."""
        reach = self._near.reach(tile)
        own, ball = self._own[tile.rows].square(), self._radius[tile.columns].square()
        mask = tile.lower <= torch.maximum(reach, own)[:, None]
        mask |= tile.lower <= ball
        i, j = true_pairs(mask)
        low = tile.lower[i, j]
        high = low + tile.slack_rows[i] + tile.slack_columns[j]
        near = low <= reach[i]
        rows, columns = i + tile.rows.start, j + tile.columns.start
        unsure = near.clone()
        for squared in (own[i], ball[j], self._clipped[columns].square()):
            unsure |= (low <= squared) & (high > squared)
        exact = torch.where(high <= 0, 0.0, high).sqrt()
        exact[unsure] = exact_distances(self._rows, self._columns, (rows[unsure], columns[unsure]))
        self._near.add(tile.rows, (i[near], columns[near]), exact[near])
        self._count(rows, columns, exact)

    def _count(self, rows: Tensor, columns: Tensor, distances: Tensor) -> None:
        """Count the balls in which the pairs lie. The distances decide this as exact ones would."""
        mine, inside = distances <= self._own[rows], distances <= self._radius[columns]
        clipped = distances <= self._clipped[columns]
        self._recalled[columns[mine]] = True
        self._inside += torch.bincount(columns[inside], minlength=len(self._inside))
        self._balls += torch.bincount(rows[inside], minlength=len(self._balls))
        self._rarity.scatter_reduce_(0, rows[inside], self._radius[columns[inside]], "amin")
        self._clipped_balls += torch.bincount(rows[clipped], minlength=len(self._clipped_balls))
        self._clipped_inside += torch.bincount(columns[clipped], minlength=len(self._clipped_inside))


def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.int64, device=device)


def _rows(features: Features, device: str) -> Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    sums = rows.sum(dim=1)  # NaN and infinity reach the sums, so no mask of the whole matrix is needed
    if not torch.isfinite(sums).all():
        first = int((~torch.isfinite(sums)).nonzero()[0])
        raise DataError(bad("features", f"row {first}", "finite numbers"))
    return rows.to(device)
