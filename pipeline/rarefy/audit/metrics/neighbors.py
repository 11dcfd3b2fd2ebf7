"""Neighbour search in two feature matrices: which rows lie in which k-NN balls, and how rare each row is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.search import Sketch, error_share, exact_distances, fast_dtype, kth_bound, sketch, smallest
from rarefy.errors import DataError, bad

BLOCK_ELEMENTS = 1 << 23  # distances in memory at a time: 32 MiB of float32
MAX_BLOCK_ROWS = 4096

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
    sole_recall, sole_cover (M,): the only generated row for which this holds; -1 if there is none or more than one.
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
    sole_recall: Indices
    sole_cover: Indices

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
    whole = sketch(rows, rows.mean(dim=0), fast_dtype(rows.device))
    near, index = torch.empty(len(rows), k), torch.empty(len(rows), k, dtype=torch.int64)
    share = error_share(whole, whole)
    for part in _blocks(len(rows), len(rows)):
        upper = _upper(whole, part, whole, share)
        inner = torch.arange(len(upper), device=rows.device)
        upper[inner, inner + part.start] = torch.inf  # a row is not its own neighbour, but its duplicates are
        reach = kth_bound(upper, k) + 2 * share * whole.norms[part]
        pairs = _pairs(upper.sub_(2 * share * whole.norms) <= reach[:, None])
        distances = exact_distances(rows[part], rows, pairs)
        near[part], index[part] = (result.cpu() for result in smallest(pairs, distances, len(upper), k))
    return Manifold(features, k, near.numpy(), index.numpy())


def find_neighbors(generated: Manifold, real: Manifold, device: str = "cpu") -> Neighborhood:
    """Find the generated rows' neighbours among the real rows, and which balls contain which rows.

    Memory: both feature matrices, the rounded real one and one block of distances. Raises
    DataError if the feature lengths differ.
    """
    rows, others = _rows(generated.features, device), _rows(real.features, device)
    if rows.shape[1] != others.shape[1]:
        raise DataError(bad("features", rows.shape[1], f"{others.shape[1]} long like the real ones"))
    crossing = _Crossing(len(rows), sketch(others, others.mean(dim=0), fast_dtype(others.device)), real)
    own = torch.from_numpy(generated.radius).to(device)
    for part in _blocks(len(rows), len(others)):
        crossing.compare(rows[part], own[part], part)
    return crossing.result()


class _Reached:
    """For each real row, how many generated rows reached it, and which was the last."""

    def __init__(self, real: int, device: torch.device) -> None:
        self.count = torch.zeros(real, dtype=torch.int64, device=device)
        self._last = torch.full((real,), -1, dtype=torch.int64, device=device)

    def add(self, columns: Tensor, rows: Tensor) -> None:
        """Count generated ``rows`` that reached the real rows ``columns``, pair by pair."""
        self.count += torch.bincount(columns, minlength=len(self.count))
        self._last[columns] = rows

    def any(self) -> Bools:
        return np.asarray((self.count > 0).cpu().numpy())

    def sole(self) -> Indices:
        return np.asarray(torch.where(self.count == 1, self._last, -1).cpu().numpy())


class _Crossing:
    """State of a search: the results so far for each generated row and each real row."""

    def __init__(self, rows: int, columns: Sketch, real: Manifold) -> None:
        device = columns.rows.device
        self._real, self._k = columns, min(real.k, len(columns.rows))
        self._radius, self._clipped = (torch.from_numpy(each).to(device) for each in (real.radius, real.clipped_radius))
        self._covered, self._recalled = (_Reached(len(columns.rows), device) for _ in range(2))
        self._clipped_inside = torch.zeros(len(columns.rows), dtype=torch.int64, device=device)
        # On the CPU, allocated at once: millions of rows in small parts would fragment its memory.
        self._near, self._rarity = torch.empty(rows, self._k), torch.empty(rows)
        self._index, self._balls, self._clipped_balls = (torch.empty(rows, dtype=torch.int64) for _ in range(3))

    def result(self) -> Neighborhood:
        return Neighborhood(
            nearest=self._near[:, 0].contiguous().numpy(),
            nearest_index=self._index.numpy(),
            mean_distance=self._near.mean(dim=1).numpy(),
            balls=self._balls.numpy(),
            rarity=self._rarity.numpy(),
            recalled=self._recalled.any(),
            inside=self._covered.count.cpu().numpy(),
            clipped_balls=self._clipped_balls.numpy(),
            clipped_inside=self._clipped_inside.cpu().numpy(),
            sole_recall=self._recalled.sole(),
            sole_cover=self._covered.sole(),
        )

    def compare(self, rows: Tensor, own: Tensor, part: slice) -> None:
        """Compare a block of generated rows with all real rows: select the pairs that may be below a threshold.

        own: radii of the rows' balls; part: the block's place among the generated rows.
        """
        real = self._real
        block = sketch(rows, real.center, real.rounded.dtype)
        share = error_share(block, real)
        lower = _upper(block, slice(None), real, share)
        base = (1 - share) * block.norms
        reach = kth_bound(lower, self._k) + 2 * share * block.norms  # minus |a|^2 (1 - share)
        outer = torch.maximum(reach, own.square() - base)
        lower.sub_(2 * share * real.norms)
        mask = lower <= outer[:, None]
        mask |= lower <= self._radius.square() - base[:, None]
        pairs = _pairs(mask)
        low = lower[pairs] + base[pairs[0]]
        high = low + 2 * share * (block.norms[pairs[0]] + real.norms[pairs[1]])
        near = low <= (reach + base)[pairs[0]]
        self._decide(rows, own, pairs, (low, high, near), part)

    def _decide(
        self,
        rows: Tensor,
        own: Tensor,
        pairs: tuple[Tensor, Tensor],
        bounds: tuple[Tensor, Tensor, Tensor],
        part: slice,
    ) -> None:
        """Decide in which balls the pairs (i, j) lie, and find the k nearest.

        bounds: lower and upper bounds of the squared distances, and whether they may be among the k nearest.
        """
        (i, j), (low, high, near) = pairs, bounds
        ball, clip, mine = self._radius[j].square(), self._clipped[j].square(), own.square()[i]
        sure = high <= mine
        self._recalled.add(j[sure], i[sure] + part.start)
        # Results depend only on whether no, one or several generated balls contain a real row.
        unsure = near | ((low <= ball) & (high > ball)) | ((low <= clip) & (high > clip))
        unsure |= (low <= mine) & ~sure & (self._recalled.count[j] < 2)
        exact = torch.full_like(high, torch.inf)
        exact[unsure] = exact_distances(rows, self._real.rows, (i[unsure], j[unsure]))
        inside = (high <= ball) & ~unsure | (exact <= self._radius[j])
        clipped = (high <= clip) & ~unsure | (exact <= self._clipped[j])
        self._clipped_inside += torch.bincount(j[clipped], minlength=len(self._clipped_inside))
        self._clipped_balls[part] = torch.bincount(i[clipped], minlength=len(rows)).cpu()
        late = ~sure & (exact <= own[i])
        self._recalled.add(j[late], i[late] + part.start)
        self._covered.add(j[inside], i[inside] + part.start)
        rarity = torch.full((len(rows),), torch.inf, device=own.device)
        rarity.scatter_reduce_(0, i[inside], self._radius[j[inside]], "amin")
        balls = torch.bincount(i[inside], minlength=len(rows))
        distances, columns = smallest((i[near], j[near]), exact[near], len(rows), self._k)
        self._near[part], self._index[part] = distances.cpu(), columns[:, 0].cpu()
        self._balls[part], self._rarity[part] = balls.cpu(), rarity.masked_fill_(balls == 0, torch.nan).cpu()


def _upper(block: Sketch, part: slice, columns: Sketch, share: float) -> Tensor:
    """Upper bounds (R, M) of the squared distances, each minus its row's own |a|^2 (1 + share)."""
    products = block.rounded[part] @ columns.rounded.T
    return torch.add((1 + share) * columns.norms, products, alpha=-2)


def _pairs(mask: Tensor) -> tuple[Tensor, Tensor]:
    i, j = mask.nonzero(as_tuple=True)
    return i, j


def _rows(features: Features, device: str) -> Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    sums = rows.sum(dim=1)  # NaN and infinity reach the sums, so no mask of the whole matrix is needed
    if not torch.isfinite(sums).all():
        first = int((~torch.isfinite(sums)).nonzero()[0])
        raise DataError(bad("features", f"row {first}", "finite numbers"))
    return rows.to(device)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = min(MAX_BLOCK_ROWS, max(1, BLOCK_ELEMENTS // columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
