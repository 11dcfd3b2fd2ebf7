"""FD infinity: the Fréchet distance of infinitely many images, by linear extrapolation (Chong and Forsyth 2020).

The Fréchet distance of finite sets is too large by a/N + b/M, to first order in the numbers N and M of images. Both
sets are halved here: twice the distance of the whole sets minus the mean distance of the halves is the line's value at
1/N = 1/M = 0. Chong and Forsyth extrapolate over the generated images alone, which leaves b/M.

The bias is linear only if each half has more images than the features are long.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.bootstrap import SEED

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) of real features, the square root (D, D) of their covariance, and its trace."""

    mean: Doubles
    root: Doubles
    trace: float


def enough_rows(rows: int, dim: int) -> bool:
    """Whether the distance of so many images can be extrapolated."""
    return rows >= 2 * dim


def real_gaussians(features: Features) -> tuple[Gaussian, ...]:
    """Of the whole real set, and of its two random halves."""
    return tuple(_gaussian(features[rows]) for rows in _parts(len(features)))


def fd_infinity(features: Features, real: tuple[Gaussian, ...]) -> float:
    """The extrapolated distance of generated features (N, D) from the real ones; it can be slightly below 0."""
    whole, *halves = (_distance(features[rows], side) for rows, side in zip(_parts(len(features)), real, strict=True))
    return 2 * whole - float(np.mean(halves))


def _parts(rows: int) -> tuple[NDArray[np.int64], ...]:
    """All rows, and two random halves of equal size; of an odd number one row is in neither."""
    order, half = np.random.default_rng(SEED).permutation(rows), rows // 2
    return np.arange(rows), order[:half], order[half : 2 * half]


def _gaussian(rows: Features) -> Gaussian:
    mean = rows.mean(axis=0, dtype=np.float64)
    covariance = np.cov(rows, rowvar=False, dtype=np.float64).reshape([rows.shape[1]] * 2)
    values, vectors = np.linalg.eigh(covariance)
    return Gaussian(mean, (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T, float(np.trace(covariance)))


def _distance(rows: Features, real: Gaussian) -> float:
    """The squared Fréchet distance: the trace of (R C R)^1/2 by eigenvalues, with R the root of the real covariance."""
    covariance = np.cov(rows, rowvar=False, dtype=np.float64).reshape([rows.shape[1]] * 2)
    shift = rows.mean(axis=0, dtype=np.float64) - real.mean
    values = np.linalg.eigvalsh(real.root @ covariance @ real.root)
    common = np.sqrt(np.maximum(values, 0.0)).sum()
    return float(shift @ shift + np.trace(covariance) + real.trace - 2 * common)
