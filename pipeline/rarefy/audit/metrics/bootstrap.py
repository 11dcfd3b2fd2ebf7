"""How much a metric would vary with another draw of images: 200 resamples with a fixed seed, 95% intervals.

Neighbourhoods and the classifier's predictions stay fixed. The rows that a metric averages over are resampled:
generated rows for precision, density, outside, avg_knn, nearest, rarity, lof, duplicates and copies; both sides for
recall, coverage, their tail versions, FID and KID. A resample contains repeats, so it covers less than the original
set. The generated side of recall and coverage therefore varies by what each row alone adds (the jackknife), and FID and
KID vary by their influence functions. The Inception Score is resampled over its ten parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

REPLICATES = 200
LEVEL = 0.95
SEED = 4
EDGES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its value in each resample (200,), None where it has no spread; over: what was resampled."""

    value: float
    replicates: Floats | None = None
    over: str | None = None

    @property
    def interval(self) -> list[float] | None:
        """The middle 95% of the resamples."""
        return None if self.replicates is None else [float(edge) for edge in np.quantile(self.replicates, EDGES)]


def finite_means(columns: Mapping[str, NDArray[np.generic]]) -> dict[str, float]:
    """The mean of each column (N,) over its finite values; 0 where it has none."""
    filled, finite = _filled(columns)
    means = filled.sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
    return dict(zip(columns, means.tolist(), strict=True))


def estimate_means(columns: Mapping[str, NDArray[np.generic]], over: str) -> dict[str, Estimate]:
    """As ``finite_means``, with resamples of the rows that all columns share."""
    means, (filled, finite) = finite_means(columns), _filled(columns)
    resampled = _resampled_ratios(filled, finite.astype(np.float64))
    spread = finite.sum(axis=0) > 1
    return {
        name: Estimate(value, resampled[:, i] if spread[i] else None, over)
        for i, (name, value) in enumerate(means.items())
    }


def estimate_mean(column: NDArray[np.generic], over: str) -> Estimate:
    """The mean of one column (N,)."""
    return estimate_means({"": column}, over)[""]


def around(value: float, influences: tuple[Floats, ...], over: str) -> Estimate:
    """A value whose resamples vary, to first order, by the mean influence (N,) of each side's resampled rows."""
    resampled = [estimate_mean(side - side.mean(), over).replicates for side in influences]
    moves = [side for side in resampled if side is not None]
    # Both sides are resampled with the same seed; rolling one of them keeps them independent of each other.
    shifted = [np.roll(side, place) for place, side in enumerate(moves)]
    return Estimate(value, value + np.sum(shifted, axis=0) if moves else None, over)


def moved_also(estimate: Estimate, influences: Floats, over: str) -> Estimate:
    """Add the variation of another side with influences (N,) to a fraction in [0, 1]."""
    if estimate.replicates is None:
        return estimate
    moves = around(0.0, (influences,), over).replicates
    # Rolled as in ``around``, so that the two sides are independent.
    replicates = estimate.replicates + (0.0 if moves is None else np.roll(moves, 1))
    return Estimate(estimate.value, np.clip(replicates, 0.0, 1.0), over)


def fraction_interval(hits: NDArray[np.bool_]) -> tuple[float | None, list[float] | None]:
    """The fraction of hits and its exact 95% bootstrap interval: a resample of hits is binomial. None for no rows."""
    if not len(hits):
        return None, None
    fraction = float(hits.mean())
    return fraction, (binom.ppf(EDGES, len(hits), fraction) / len(hits)).tolist()


def chosen_rows(rows: int, count: int) -> NDArray[np.int64]:
    """Ascending indices of at most ``count`` of ``rows`` rows, random with a fixed seed."""
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:count])


def _filled(columns: Mapping[str, NDArray[np.generic]]) -> tuple[Floats, NDArray[np.bool_]]:
    """The columns side by side (N, m) with 0 for what is not finite, and where they are finite."""
    stacked = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    finite = np.isfinite(stacked)
    return np.where(finite, stacked, 0.0), finite


def _resampled_ratios(top: Floats, bottom: Floats) -> Floats:
    """(200, m) sums of top over sums of bottom, (N, m) each, of rows drawn with replacement; 0 where bottom is 0."""
    generator, rows = np.random.default_rng(SEED), len(top)
    ratios = np.empty((REPLICATES, top.shape[1]))
    for replicate in range(REPLICATES):
        times = np.bincount(generator.integers(0, rows, rows), minlength=rows).astype(np.float64)
        below = times @ bottom
        ratios[replicate] = np.divide(times @ top, below, out=np.zeros_like(below), where=below > 0)
    return ratios
