"""How far a number would move with another draw of images: 200 resamples with a fixed seed, 95% intervals.

Neighbour sets and the classifier's answers stay fixed; what is drawn again are the rows that a metric averages over.
So precision, density, outside, avg_knn, nearest, rarity, lof, duplicates and copies are drawn over the generated rows,
recall, coverage, their tails, FID and KID over both sides. Drawn with repetition, a set reaches less than it did, so
the generated side of recall and coverage moves by what each row alone adds (the jackknife), FID and KID by their
influence functions. The Inception Score is drawn over its ten parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REPLICATES = 200
LEVEL = 0.95
SEED = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A metric's value and what it was in each resample (200,), None where it has no spread; over: what was drawn."""

    value: float
    replicates: Floats | None = None
    over: str | None = None

    @property
    def interval(self) -> list[float] | None:
        """The middle 95% of the resamples."""
        if self.replicates is None:
            return None
        tail = (1 - LEVEL) / 2
        return [float(edge) for edge in np.quantile(self.replicates, (tail, 1 - tail))]


def estimate_means(values: dict[str, NDArray[np.generic]], over: str) -> dict[str, Estimate]:
    """Means of columns (N,) over the same rows; a row that is NaN in a column takes no part in it (none: 0)."""
    stacked = np.stack([np.asarray(column, np.float64) for column in values.values()], axis=1)
    there = np.isfinite(stacked)
    filled = np.where(there, stacked, 0.0)
    counts = there.sum(axis=0)
    means = filled.sum(axis=0) / np.maximum(counts, 1)
    drawn = _ratios(filled, there.astype(np.float64))
    return {
        name: Estimate(float(means[i]), drawn[:, i] if counts[i] > 1 else None, over) for i, name in enumerate(values)
    }


def estimate_mean(values: NDArray[np.generic], over: str) -> Estimate:
    """The mean of one column (N,)."""
    return estimate_means({"": values}, over)[""]


def around(value: float, influences: tuple[Floats, ...], over: str) -> Estimate:
    """A value that moves, to first order, with the mean of each side's influences (N,) under resampling."""
    drawn = [estimate_means({"": side - side.mean()}, over)[""].replicates for side in influences]
    moves = [side for side in drawn if side is not None]
    # Both sides draw with the same seed; another order keeps them independent of each other.
    shifted = [np.roll(side, place) for place, side in enumerate(moves)]
    return Estimate(value, value + np.sum(shifted, axis=0) if moves else None, over)


def moved_also(estimate: Estimate, influences: Floats, over: str) -> Estimate:
    """A share in [0, 1] that also moves with the mean of another side's influences (N,)."""
    if estimate.replicates is None:
        return estimate
    moves = around(0.0, (influences,), over).replicates
    # Both sides draw with the same seed; another order keeps them independent of each other.
    drawn = estimate.replicates + (0.0 if moves is None else np.roll(moves, 1))
    return Estimate(estimate.value, np.clip(drawn, 0.0, 1.0), over)


def chosen_rows(rows: int, count: int) -> NDArray[np.int64]:
    """Ascending numbers of at most ``count`` of ``rows`` rows, random with a fixed seed."""
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:count])


def _ratios(top: Floats, bottom: Floats) -> Floats:
    """(200, m) sums of top over sums of bottom, (N, m) each, of rows drawn with replacement; 0 where bottom is 0."""
    generator, rows = np.random.default_rng(SEED), len(top)
    drawn = np.empty((REPLICATES, top.shape[1]))
    for replicate in range(REPLICATES):
        times = np.bincount(generator.integers(0, rows, rows), minlength=rows).astype(np.float64)
        below = times @ bottom
        drawn[replicate] = np.divide(times @ top, below, out=np.zeros_like(below), where=below > 0)
    return drawn
