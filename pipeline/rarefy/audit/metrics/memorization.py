"""Two measures of memorisation by distances in feature space: the authenticity share and the C_T test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.cluster import KMeans

from rarefy.audit.metrics.bootstrap import REPLICATES, SEED, Estimate

BOTH = "both sides"
CELL = 60  # images of the measured set per cell, on average
MAX_CELLS = 10
LEAST = 20  # images of the measured set in a cell that counts
FITTED = 10_000  # training images that the cells are made from
DISTANCES = 1 << 23  # in memory at a time

Matrix = NDArray[np.floating]
Distances = NDArray[np.float64]


def authentic(nearest: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which images are authentic (Alaa et al., ICML 2022): farther from their nearest training image than that is.

    nearest (N,): distance to the nearest training image; others (N,): distance of that one to its own nearest other.
    """
    return np.asarray(nearest > others)


@dataclass(frozen=True)
class _Cell:
    """Distances to the nearest training image of the cell. measured (m,), unseen (n,): of both sets; weight: n."""

    measured: Distances
    unseen: Distances

    def z(self) -> float:
        """Mann-Whitney's U of the two, as a z score: below 0 if the measured images are nearer."""
        m, n = len(self.measured), len(self.unseen)
        ranks = rankdata(np.concatenate([self.measured, self.unseen]))[:m]
        u = ranks.sum() - m * (m + 1) / 2
        return float((u - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))

    def resampled(self, generator: np.random.Generator) -> _Cell:
        sides = (self.measured, self.unseen)
        return _Cell(*(side[generator.integers(0, len(side), len(side))] for side in sides))


def copying_test(measured: Matrix, unseen: Matrix, training: Matrix, device: str = "cpu") -> Estimate | None:
    """C_T of Meehan, Chaudhuri and Dasgupta (AISTATS 2020): far below 0 if the model copies its training images.

    measured (m, D): features of generated images; unseen (n, D): of real ones that no training step saw; training
    (t, D). Per k-means cell of the training set, a Mann-Whitney test whether the measured images are nearer to it than
    the unseen ones; C_T is the mean of its z scores, weighted by the unseen images. Cells with fewer than 20 measured
    images (or all, if there are fewer) do not count. Resampled: both sides within each cell. None without a cell.
    """
    cells = _cells(measured, unseen, training, device) if len(measured) and len(unseen) else []
    if not cells:
        return None
    generator = np.random.default_rng(SEED)
    replicates = [_mean_z([cell.resampled(generator) for cell in cells]) for _ in range(REPLICATES)]
    return Estimate(_mean_z(cells), np.array(replicates), BOTH)


def _mean_z(cells: list[_Cell]) -> float:
    return float(np.average([cell.z() for cell in cells], weights=[len(cell.unseen) for cell in cells]))


def _cells(measured: Matrix, unseen: Matrix, training: Matrix, device: str) -> list[_Cell]:
    count = int(np.clip(len(measured) // CELL, 1, MAX_CELLS))
    least = min(LEAST, len(measured))
    fitted = np.random.default_rng(SEED).permutation(len(training))[:FITTED]
    model = KMeans(min(count, len(fitted)), n_init=1, random_state=SEED).fit(training[fitted].astype(np.float32))
    places = [model.predict(side.astype(np.float32)) for side in (measured, unseen, training)]
    cells = []
    for cell in range(model.n_clusters):
        rows = [np.flatnonzero(place == cell) for place in places]
        if len(rows[0]) >= least and len(rows[1]) and len(rows[2]):
            own = training[rows[2]]
            sides = (measured[rows[0]], unseen[rows[1]])
            cells.append(_Cell(*(nearest_distances(side, own, device) for side in sides)))
    return cells


def nearest_distances(rows: Matrix, others: Matrix, device: str = "cpu") -> Distances:
    """(N,) Euclidean distance of each row to the nearest of the others (M, D)."""
    targets = torch.from_numpy(others.astype(np.float32)).to(device)
    nearest, step = np.empty(len(rows)), max(1, DISTANCES // len(others))
    for start in range(0, len(rows), step):
        part = torch.from_numpy(rows[start : start + step].astype(np.float32)).to(device)
        places = torch.cdist(part, targets).argmin(dim=1)
        nearest[start : start + step] = (part - targets[places]).norm(dim=1).cpu().numpy()
    return nearest
