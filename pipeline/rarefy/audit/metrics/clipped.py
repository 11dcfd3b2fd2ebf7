"""Clipped density and clipped coverage (Salvy et al. 2025, arXiv 2507.01761), which outliers cannot inflate.

A rare real image is an outlier of the real set: its k-NN ball is so large that it contains generated images of any
kind. Both metrics therefore limit what one ball or one image can contribute, and are calibrated so that a set of which
a fraction f is as good as real images, and the rest far away, scores f.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

from rarefy.audit.metrics.neighbors import Manifold, Neighborhood

Doubles = NDArray[np.float64]


def clipped_density(neighborhood: Neighborhood, real: Manifold) -> float:
    """Mean number of real balls around a generated row, over the same for real rows: 0 to 1.

    Radii are clipped at their median, and no row counts for more than k balls.
    """
    generated = float(np.minimum(neighborhood.clipped_balls, real.k).mean())
    within = real.near_index[real.near <= real.clipped_radius[:, None]]  # real rows in the balls of other real rows
    balls = np.bincount(within, minlength=len(real.features))
    return min(1.0, generated / float(np.minimum(balls, real.k).mean()))


def clipped_coverage(neighborhood: Neighborhood, real: Manifold) -> float:
    """Mean number of generated rows in a real ball, at most k each, as the fraction of good rows that would give it."""
    reached = float(np.minimum(neighborhood.inside, real.k).mean() / real.k)
    rows = len(neighborhood.balls)
    return float(np.interp(reached, expected_coverage(real.k, len(real.features), rows), np.arange(rows + 1) / rows))


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
