"""Clipped density and clipped coverage (Salvy et al. 2025, arXiv 2507.01761), which outliers cannot inflate.

A rare real image is an outlier of the real set: its k-NN ball is so large that it contains generated images of any
kind. Both metrics therefore limit what one ball or one image can contribute, and are calibrated so that a set of which
a fraction f is as good as real images, and the rest far away, scores f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

from rarefy.audit.metrics.bootstrap import Estimate, estimate_mean, moved_also
from rarefy.audit.metrics.neighbors import Manifold, Neighborhood

Doubles = NDArray[np.float64]


def clipped_density(neighborhood: Neighborhood, real: Manifold, over: str) -> Estimate:
    """Mean number of real balls around a generated row, over what real rows reach: 0 to 1.

    Radii are clipped at their median, and no row counts for more than k balls.
    """
    k = real.k
    column = np.minimum(neighborhood.clipped_balls, k) / k
    estimate = estimate_mean(column, over)
    counted, pairs = float(column.sum()), int(neighborhood.clipped_balls.sum())
    # Balls around the same row share what that row counts, on average over all rows.
    gained = len(neighborhood.clipped_inside) * neighborhood.clipped_inside * (counted / max(pairs, 1) / len(column))
    reached = real_density(real)
    return _calibrated(moved_also(estimate, gained, over), lambda values: np.minimum(values / reached, 1.0))


def real_density(real: Manifold) -> float:
    """The same mean for the real rows, each among the others: what clipped density is divided by."""
    within = real.near_index[real.near <= real.clipped_radius[:, None]]
    balls = np.bincount(within, minlength=len(real.features))
    return float(np.minimum(balls, real.k).mean() / real.k)


def clipped_coverage(neighborhood: Neighborhood, real: Manifold, over: str) -> Estimate:
    """Mean number of generated rows in a real ball, at most k each, as the fraction of good rows that would give it."""
    k = real.k
    column = np.minimum(neighborhood.inside, k) / k
    estimate = estimate_mean(column, over)
    counted, pairs = float(column.sum()), int(neighborhood.inside.sum())
    rows = len(neighborhood.balls)
    gained = rows * neighborhood.balls * (counted / max(pairs, 1) / len(column))
    expected = expected_coverage(k, len(column), rows)
    return _calibrated(
        moved_also(estimate, gained, over),
        lambda values: np.interp(values, expected, np.arange(rows + 1) / rows),
    )


def expected_coverage(k: int, real: int, rows: int) -> Doubles:
    """(rows + 1,) the uncalibrated coverage that 0, 1, ... ``rows`` generated rows reach if they are like real ones.

    The probability of a real row's ball is Beta(k, real - k) distributed (the k-th of real - 1 distances), so the
    number J of m rows inside is beta-binomial. The result is E[min(J, k)] / k.
    """
    m = np.arange(rows + 1, dtype=np.float64)
    short = np.zeros(rows + 1)
    for j in range(k):
        log_choose = gammaln(m + 1) - gammaln(j + 1) - gammaln(np.maximum(m - j, 0) + 1)
        log_beta = betaln(k + j, real - k + np.maximum(m - j, 0)) - betaln(k, real - k)
        short += np.where(m >= j, (k - j) * np.exp(log_choose + log_beta), 0.0)
    return np.asarray(1 - short / k)


def _calibrated(estimate: Estimate, scale: Callable[[Doubles], Doubles]) -> Estimate:
    value = float(scale(np.array([estimate.value]))[0])
    replicates = None if estimate.replicates is None else scale(estimate.replicates)
    return replace(estimate, value=value, replicates=replicates)
