"""How much FID and KID vary with other draws of both sides, class by class.

Influences computed from the sample count every pair of rows twice: once for either row. To first order this does no
harm, but where the two sets are close, or have fewer rows than features, pairs make most of the variation. Halves of
the sets measure what pairs contribute: their mean has no first-order part.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.blocks import Labels, Rows, assign_blocks
from rarefy.audit.metrics.bootstrap import SEED, Estimate, Floats, around, centred, chosen_rows, from_contrasts
from rarefy.audit.metrics.distances import KERNEL_ROWS, KID_SUBSETS, frechet_influences, kernel_influences

BOTH = "both sides"
SPLITS = 24  # random halves for sets with fewer rows than features
FEW_SPLITS = 6  # for larger sets, where the influences are accurate and halves only correct them
LEAST = 0.25  # smallest fraction of the uncorrected variance


def frechet_estimate(value: float, features: tuple[Features, Features], labels: Labels) -> Estimate:
    """FID's value with its spread. features, labels: of the generated and the real rows."""
    generated, real = features
    if min(map(len, labels)) < 4:
        return Estimate(value, None, BOTH)
    sums = _Products(generated, real)
    if min(map(len, labels)) <= generated.shape[1]:
        halves = _half_values(sums, labels, SPLITS)
        contrasts = (halves[:, 0] - halves[:, 1]) / 2
        return from_contrasts(value, contrasts * _scale(float((contrasts**2).mean()), _of_pairs(halves)), BOTH)
    influences = frechet_influences(generated, real)
    sides = centred(influences[0], labels[0]), centred(influences[1], labels[1])
    first = sum(float((side**2).mean()) / len(side) for side in sides)
    return around(value, sides, BOTH, _scale(first, _of_pairs(_half_values(sums, labels, FEW_SPLITS))))


def infinity_estimate(value: float, features: tuple[Features, Features], labels: Labels) -> Estimate:
    """FD infinity's value with its spread. features, labels: of the generated and the real rows.

    Twice the whole sets' distance minus that of halves contains only the pairs of rows from different halves, each with
    twice its weight: the variance of pairs is doubled, as it is in the uncorrected influences.
    """
    influences = frechet_influences(*features)
    return around(value, (centred(influences[0], labels[0]), centred(influences[1], labels[1])), BOTH)


def kernel_estimate(value: float, std: float, features: tuple[Features, Features], labels: Labels) -> Estimate:
    """KID's value with its spread. std: over the random subsets whose mean the value is."""
    influences = kernel_influences(*features)
    sides = centred(influences[0], labels[0]), centred(influences[1], labels[1])
    first = sum(float((side**2).mean()) / len(side) for side in sides)
    true = kernel_variance(*features, labels) + std**2 / KID_SUBSETS
    return around(value, sides, BOTH, float(np.sqrt(true / first)) if first > 0 else 1.0)


def kernel_variance(generated: Features, real: Features, labels: Labels) -> float:
    """Variance of the unbiased kernel distance over draws within the classes: of single rows and of pairs.

    The row means of the kernel contain the noise of the rows that they average over, which is subtracted.
    """
    chosen = [chosen_rows(len(side), KERNEL_ROWS) for side in labels]
    x, y = generated[chosen[0]].astype(np.float64), real[chosen[1]].astype(np.float64)
    own_labels = labels[0][chosen[0]], labels[1][chosen[1]]
    apart = _kernel(x, y)
    pairs_apart = float((_doubly_centred(apart, *own_labels) ** 2).mean())
    total, sizes = 4 * pairs_apart / (len(labels[0]) * len(labels[1])), (len(x), len(y))
    for side, rows, means in ((0, x, apart.mean(axis=1)), (1, y, apart.mean(axis=0))):
        among = _kernel(rows, rows)
        np.fill_diagonal(among, 0.0)
        own = among.sum(axis=1) / (len(rows) - 1)
        np.fill_diagonal(among, own)
        pairs = float((_doubly_centred(among, own_labels[side], own_labels[side]) ** 2).mean())
        single = float((centred(own - means, own_labels[side]) ** 2).mean())
        single -= pairs / len(rows) + pairs_apart / sizes[1 - side]
        count = len(labels[side])
        total += 4 * max(single, 0.0) / count + 2 * pairs / count**2
    return total


class _Products:
    """Inner products of all rows, from which the Fréchet distance of any halves is quick to compute."""

    def __init__(self, generated: Features, real: Features) -> None:
        middle = real.mean(axis=0)
        self._rows = generated - middle, real - middle
        small = min(len(generated), len(real)) <= generated.shape[1]
        self._products = self._rows[0] @ self._rows[1].T if small else None

    def distance(self, chosen: tuple[Rows, Rows]) -> float:
        """The Fréchet distance between these generated and real rows."""
        rows = [side[own] for side, own in zip(self._rows, chosen, strict=True)]
        means = [side.mean(axis=0) for side in rows]
        spreads = [side - mean for side, mean in zip(rows, means, strict=True)]
        traces = sum(float(np.einsum("nd,nd->", side, side)) / (len(side) - 1) for side in spreads)
        return float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * self._overlap(spreads, chosen)

    def _overlap(self, spreads: list[Features], chosen: tuple[Rows, Rows]) -> float:
        """Trace of (C1 C2)^1/2: the singular values of X1 X2' or, for more rows than features, of their factors."""
        if self._products is not None:
            cross = self._products[np.ix_(*chosen)]
            cross = cross - cross.mean(axis=0) - cross.mean(axis=1, keepdims=True) + cross.mean()
            cross = cross if len(cross) <= cross.shape[1] else cross.T
            square = (cross @ cross.T).astype(np.float64) / ((len(spreads[0]) - 1) * (len(spreads[1]) - 1))
        else:
            first, second = ((side.T @ side).astype(np.float64) / (len(side) - 1) for side in spreads)
            values, vectors = torch.linalg.eigh(torch.from_numpy(first))
            root = (vectors * values.clamp(min=0).sqrt()).numpy()
            square = root.T @ second @ root
        return float(torch.linalg.eigvalsh(torch.from_numpy(square)).clamp(min=0).sqrt().sum())


def _half_values(sums: _Products, labels: Labels, splits: int) -> Floats:
    """(splits, 2) the Fréchet distances of both halves of random partitions, class by class."""
    generators = [np.random.default_rng([SEED, side]) for side in range(2)]
    values = np.empty((splits, 2))
    for split in range(splits):
        places = [assign_blocks(side, 2, draw) for side, draw in zip(labels, generators, strict=True)]
        for half in range(2):
            values[split, half] = sums.distance((np.flatnonzero(places[0] == half), np.flatnonzero(places[1] == half)))
    return values


def _of_pairs(halves: Floats) -> float:
    """The variance that pairs of rows contribute: that of the halves' mean, whose first-order part cancels."""
    return float(halves.mean(axis=1).var(ddof=1))


def _scale(variance: float, pairs: float) -> float:
    """Factor from a spread that counts pairs twice to one that counts them once."""
    return float(np.sqrt(max(1 - pairs / variance, LEAST))) if variance > 0 else 1.0


def _kernel(first: Floats, second: Floats) -> Floats:
    return np.asarray((first @ second.T / first.shape[1] + 1) ** 3)


def _doubly_centred(kernel: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
    """Minus the means over the classes of its rows, then of its columns."""
    for axis, labels in ((0, rows), (1, columns)):
        kernel = kernel if axis == 0 else kernel.T
        groups = np.unique(labels, return_inverse=True)[1]
        sums = np.zeros((groups.max() + 1, kernel.shape[1]))
        np.add.at(sums, groups, kernel)
        kernel = kernel - (sums / np.bincount(groups)[:, None])[groups]
    return np.asarray(kernel.T)
