"""The metrics of the real baseline's draws, which share the work that depends on the reference alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.assembly import Distances, SetEstimates, set_values
from rarefy.audit.metrics.distances import (
    CHUNK,
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    SEED,
    Doubles,
    frechet_distance,
    gaussian,
    kernel_distances,
    local_outlier_factors,
)
from rarefy.audit.metrics.neighbors import Bools, Manifold


def draw_values(draws: Sequence[Manifold], real: Manifold, tail: Bools, device: str = "cpu") -> Iterator[SetEstimates]:
    """The metrics of each draw, without any spread. All draws have the same number of rows."""
    sizes = {len(draw.features) for draw in draws}
    small = len(draws) > 1 and max(sizes) <= min(KID_SUBSET_SIZE, len(real.features), real.features.shape[1])
    shared = _Shared(real.features, *sizes) if small else None
    for draw in draws:
        if shared is None:
            features = draw.features, real.features
            frechet, kernel = frechet_distance(*features), kernel_distances(*features)
        else:
            frechet, kernel = shared.frechet(draw.features), shared.kernel(draw.features)
        factors = local_outlier_factors(draw.features, real.features)
        yield set_values((draw, real), tail, Distances(frechet, kernel, factors), device)


class _Shared:
    """What FID and KID need of the reference, for draws with fewer rows than features and than KID's subsets have.

    Every subset of a draw is then the whole draw, and the subsets of the reference are the same for all draws.
    """

    def __init__(self, real: Features, rows: int) -> None:
        self._real, (self._mean, self._covariance) = real, gaussian(real)
        generator = np.random.RandomState(SEED)
        self._subsets, self._among = [], np.empty(KID_SUBSETS)
        for subset in range(KID_SUBSETS):
            generator.choice(rows, rows, replace=False)  # the draw's own, which comes first
            self._subsets.append(generator.choice(len(real), rows, replace=False))
            self._among[subset] = _mean_of_pairs(real[self._subsets[-1]].astype(np.float64))

    def frechet(self, features: Features) -> float:
        """The Fréchet distance: the trace of (C1 C2)^1/2 by the eigenvalues of X1 C2 X1', which has the draw's rows."""
        wide = features.astype(np.float64)
        mean, spread = wide.mean(axis=0), (wide - wide.mean(axis=0)) / np.sqrt(len(wide) - 1)
        roots = np.sqrt(np.linalg.eigvalsh(spread @ self._covariance @ spread.T).clip(min=0)).sum()
        traces = float((spread**2).sum() + np.trace(self._covariance))
        return float(((mean - self._mean) ** 2).sum()) + traces - 2 * float(roots)

    def kernel(self, features: Features) -> Doubles:
        """KID of each of its subsets."""
        wide = features.astype(np.float64)
        parts = (self._real[start : start + CHUNK].astype(np.float64) for start in range(0, len(self._real), CHUNK))
        apart = np.concatenate([_kernel(wide, part).mean(axis=0) for part in parts])
        across = np.array([apart[subset].mean() for subset in self._subsets])
        return np.asarray(_mean_of_pairs(wide) + self._among - 2 * across)


def _kernel(first: Doubles, second: Doubles) -> Doubles:
    return np.asarray((first @ second.T / first.shape[1] + 1) ** 3)


def _mean_of_pairs(rows: Doubles) -> float:
    """The mean kernel of two different rows."""
    kernel = _kernel(rows, rows)
    return float((kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1)))
