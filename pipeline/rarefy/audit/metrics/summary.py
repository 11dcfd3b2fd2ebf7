"""Summaries of arrays: histograms and distances between distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 25
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Histogram:
    """Fractions per bin of the generated and the real values, and their means; None for a side without values."""

    unit: str
    edges: list[float]
    generated: list[float] | None
    generated_mean: float | None
    reference: list[float] | None
    reference_mean: float | None


def histogram(unit: str, generated: Array, real: Array | None, upper: float | None = None) -> Histogram:
    """Histogram of the finite values in 25 equal bins from 0 to ``upper``.

    By default ``upper`` is the 99.5th percentile of both sides, and the last bin also counts what is above it.
    """
    sides = _finite(generated), _finite(np.empty(0) if real is None else real)
    values = np.concatenate(sides)
    top = upper if upper is not None else float(np.quantile(values, 0.995)) if len(values) else 0.0
    edges = np.linspace(0.0, top if top > 0 else 1.0, BINS + 1)
    return Histogram(unit, edges.tolist(), *_fractions(sides[0], edges), *_fractions(sides[1], edges))


def wasserstein_1(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Area between the two distribution functions, in the values' unit; None if a side is empty."""
    if not len(first) or not len(second):
        return None
    edges = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(np.sort(side), edges[:-1], side="right") / len(side) for side in (first, second)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(edges)))


def mean(values: Array) -> float | None:
    """The mean; None without values."""
    return float(np.mean(values.astype(np.float64))) if values.size else None


def _finite(values: Array) -> NDArray[np.float64]:
    wide = np.asarray(values, dtype=np.float64)
    return wide[np.isfinite(wide)]


def _fractions(side: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[list[float] | None, float | None]:
    if not len(side):
        return None, None
    counts = np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0]
    return (counts / counts.sum()).tolist(), float(side.mean())
