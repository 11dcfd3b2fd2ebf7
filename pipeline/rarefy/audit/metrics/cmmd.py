"""CMMD (Jayasumana et al. 2024): the maximum mean discrepancy of normalised features under a Gaussian kernel.

With CLIP's features (``--extractor clip-vit-l-14-336px``) this is the paper's metric; its name includes the extractor.
It does not take features to be Gaussian, and the estimate is unbiased: its expectation does not depend on the number of
images, and it can be slightly below 0. (The authors' code counts the pairs of an image with itself, which adds a bias.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.cache import array_digest, cached
from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.bootstrap import Estimate, around, centred

SIGMA = 10.0
SCALE = 1000.0
BLOCK = 1024

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class KernelSet:
    """Normalised rows (N, D) with labels (N,), and each row's sum (N,) of the kernel minus 1 with the other rows."""

    rows: Features
    labels: NDArray[np.int64]
    sums: Doubles


def kernel_set(features: Features, labels: NDArray[np.int64], keep: bool = False) -> KernelSet:
    """keep: through the disk cache, for a set that later audits measure against, too."""
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    if not keep:
        return KernelSet(rows, labels, _sums(rows))
    parts = ("kernel sums", str(SIGMA), array_digest(features))
    return KernelSet(rows, labels, np.asarray(cached(parts, lambda: {"sums": _sums(rows)})["sums"], np.float64))


def cmmd(generated: KernelSet, real: KernelSet, over: str) -> Estimate:
    """The squared discrepancy times 1000, varied by the rows' influences. Both sets need two rows or more."""
    n, m = len(generated.rows), len(real.rows)
    of_generated, of_real = _crossing(generated.rows, real.rows)
    own, other = generated.sums / (n - 1), real.sums / (m - 1)
    value = own.mean() + other.mean() - 2 * of_generated.mean() / m
    influences = (
        centred(2 * SCALE * (own - of_generated / m), generated.labels),
        centred(2 * SCALE * (other - of_real / n), real.labels),
    )
    return around(SCALE * float(value), influences, over)


def _crossing(generated: Features, real: Features) -> tuple[Doubles, Doubles]:
    """Sums of the kernel minus 1 by row (N,) and by column (M,)."""
    by_row, by_column = np.empty(len(generated)), np.zeros(len(real))
    for start in range(0, len(generated), BLOCK):
        kernel = _kernel(generated[start : start + BLOCK], real)
        by_row[start : start + BLOCK] = kernel.sum(axis=1, dtype=np.float64)
        by_column += kernel.sum(axis=0, dtype=np.float64)
    return by_row, by_column


def _sums(rows: Features) -> Doubles:
    """A row's kernel with itself is 1, so it adds nothing here. Each pair of blocks is computed once."""
    sums = np.zeros(len(rows))
    for start in range(0, len(rows), BLOCK):
        kernel = _kernel(rows[start : start + BLOCK], rows[start:])
        sums[start : start + BLOCK] += kernel.sum(axis=1, dtype=np.float64)
        sums[start + BLOCK :] += kernel[:, BLOCK:].sum(axis=0, dtype=np.float64)
    return sums


def _kernel(rows: Features, others: Features) -> Features:
    """The kernel minus 1, which keeps its precision: normalised features are close together on the kernel's scale."""
    distances = np.maximum(2 - 2 * (rows @ others.T), 0.0)
    return np.asarray(np.expm1(distances / np.float32(-2 * SIGMA**2)))
