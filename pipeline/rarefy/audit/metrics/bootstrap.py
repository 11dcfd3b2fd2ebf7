"""How much a metric would vary with other draws of images: 95% intervals, and 200 replicates with a fixed seed.

Draws are taken class by class, since the audit measures a given number of images per class. Metrics that average over
rows which nothing else depends on (the on-class rate, copies) are resampled within the classes. Metrics of
neighbourhoods vary by blocks of both sides (blocks.py), FID and KID by their influence functions (spread.py). The
Inception Score is resampled over its ten parts. Replicates with the same number share the draw of the real images, so
that two audits with the same reference can be subtracted replicate by replicate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

REPLICATES = 200
LEVEL = 0.95
SEED = 4
UPPER = (1 + LEVEL) / 2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its replicates (200,), None where it has no spread.

    over: what was drawn anew; share_of: for a fraction, the number of rows that it counts; degrees: of freedom behind
    the replicates' spread, None for many.
    """

    value: float
    replicates: Floats | None = None
    over: str | None = None
    share_of: int | None = None
    degrees: int | None = None

    @property
    def interval(self) -> list[float] | None:
        """95% interval: Student's t, and for fractions Wilson's with the effective number of rows."""
        if self.replicates is None:
            return None
        width = float(norm.ppf(UPPER) if self.degrees is None else t.ppf(UPPER, self.degrees))
        spread = float(self.replicates.std())
        if self.share_of is None:
            return [self.value - width * spread, self.value + width * spread]
        return wilson_interval(self.value, _effective_rows(self.value, spread, self.share_of), width)


def finite_means(columns: Mapping[str, NDArray[np.generic]]) -> dict[str, float]:
    """The mean of each column (N,) over its finite values; 0 where it has none."""
    stacked = np.stack([np.asarray(column, np.float64) for column in columns.values()], axis=1)
    finite = np.isfinite(stacked)
    means = np.where(finite, stacked, 0.0).sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
    return dict(zip(columns, means.tolist(), strict=True))


def estimate_mean(column: NDArray[np.generic], over: str, labels: NDArray[np.int64] | None = None) -> Estimate:
    """The mean of a column (N,), resampled within the classes of ``labels`` (N,). Booleans give a fraction."""
    values = np.asarray(column, np.float64)
    if not len(values):
        return Estimate(0.0, None, over)
    moves = resampled_moves(centred(values, labels))
    share_of = len(values) if column.dtype == np.bool_ else None
    return Estimate(float(values.mean()), None if moves is None else values.mean() + moves, over, share_of)


def around(value: float, influences: tuple[Floats, ...], over: str, scale: float = 1.0) -> Estimate:
    """A value whose replicates vary, to first order, by the mean influence (N,) of each side's resampled rows.

    scale: factor on the variation, for what the influences alone get wrong.
    """
    moves = [side for side in map(resampled_moves, influences) if side is not None]
    # Both sides are resampled with the same seed; rolling one of them keeps them independent of each other.
    shifted = [np.roll(side, place) for place, side in enumerate(moves)]
    return Estimate(value, value + scale * np.sum(shifted, axis=0) if moves else None, over)


def from_contrasts(value: float, contrasts: Floats, over: str, share_of: int | None = None) -> Estimate:
    """A value with independent deviations (C,), each of which is as large as the value's own spread.

    The 200 replicates are fixed random sums of them: their standard deviation is the root mean square of the
    deviations, and sums of the same number match across metrics and audits.
    """
    weights = np.random.default_rng(SEED).normal(size=(REPLICATES, len(contrasts)))
    weights = np.linalg.qr(weights - weights.mean(axis=0))[0] * np.sqrt(REPLICATES / len(contrasts))
    return Estimate(value, value + weights @ contrasts, over, share_of, len(contrasts))


def centred(values: Floats, labels: NDArray[np.int64] | None) -> Floats:
    """Values (N,) minus the mean of their class."""
    if labels is None:
        return np.asarray(values - values.mean())
    groups = np.unique(labels, return_inverse=True)[1]
    means = np.bincount(groups, values) / np.bincount(groups)
    return np.asarray(values - means[groups])


def resampled_moves(influences: Floats) -> Floats | None:
    """(200,) means of the influences (N,), whose own mean is 0, over rows drawn with replacement; None for one row."""
    rows = len(influences)
    if rows < 2:
        return None
    generator = np.random.default_rng(SEED)
    return np.array([influences[generator.integers(0, rows, rows)].mean() for _ in range(REPLICATES)])


def wilson_interval(share: float, rows: float, width: float = float(norm.ppf(UPPER))) -> list[float]:
    """Wilson's score interval of a fraction of ``rows`` rows; it has a width at 0 and 1 too (Wilson 1927)."""
    middle = (share + width**2 / (2 * rows)) / (1 + width**2 / rows)
    half = width / (1 + width**2 / rows) * np.sqrt(share * (1 - share) / rows + width**2 / (4 * rows**2))
    return [max(0.0, min(share, float(middle - half))), min(1.0, max(share, float(middle + half)))]  # despite rounding


def fraction_interval(hits: NDArray[np.bool_]) -> tuple[float | None, list[float] | None]:
    """The fraction of hits and its Wilson interval. None for no rows."""
    if not len(hits):
        return None, None
    return float(hits.mean()), wilson_interval(float(hits.mean()), len(hits))


def chosen_rows(rows: int, count: int) -> NDArray[np.int64]:
    """Ascending indices of at most ``count`` of ``rows`` rows, random with a fixed seed."""
    return np.sort(np.random.default_rng(SEED).permutation(rows)[:count])


def _effective_rows(share: float, spread: float, rows: int) -> float:
    """The number of independent rows with the fraction's spread (Korn and Graubard 1998); all rows if it has none."""
    return share * (1 - share) / spread**2 if spread > 0 and 0 < share < 1 else rows
