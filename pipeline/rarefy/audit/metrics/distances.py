"""Distances between whole sets of features: FID, KID and Inception Score by torch-fidelity, LOF by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import LocalOutlierFactor

from rarefy.audit.features.extractors import Features
from rarefy.audit.features.fidelity import load_module
from rarefy.audit.metrics.bootstrap import chosen_rows

Doubles = NDArray[np.float64]
Matrix = NDArray[np.floating[Any]]

KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000
KERNEL_ROWS = 2000  # rows of each side that estimate the influences on KID
SEED = 2020
PRC_BLOCK = 2048
ISC_SPLITS = 10
LOF_SAMPLE = 2000  # scikit-learn compares every pair in float64
LOF_NEIGHBORS = 20
CHUNK = 4096  # rows converted to float64 at a time


def frechet_distance(generated: Features, real: Features) -> float:
    """Fréchet distance between the Gaussians fitted to two (N, D) feature matrices (Heusel et al. 2017).

    Sets with fewer rows than columns are first rotated into the space that they span: the distance is the same there
    and the eigenvalues are cheap.
    """
    fid = load_module("metric_fid")
    first, second = (dict(zip(("mu", "sigma"), gaussian(rows), strict=True)) for rows in _spanned(generated, real))
    return float(fid.fid_statistics_to_metric(first, second, verbose=False)[fid.KEY_METRIC_FID])


def frechet_influences(generated: Features, real: Features) -> tuple[Doubles, Doubles]:
    """Influence of each row of either side on the Fréchet distance, to first order in the row's weight: (N,), (M,).

    With T = C2^1/2 (C2^1/2 C1 C2^1/2)^-1/2 C2^1/2, the optimal transport from one Gaussian to the other, the derivative
    towards a row x is 2 (m1 - m2).(x - m1) + (x - m1)'(I - T)(x - m1), minus its mean.
    """
    rows = _spanned(generated, real)
    (mean_1, cov_1), (mean_2, cov_2) = (gaussian(side) for side in rows)
    sides = ((rows[0], mean_1, mean_2, _transport(cov_1, cov_2)), (rows[1], mean_2, mean_1, _transport(cov_2, cov_1)))
    influences = []
    for side, own, other, transport in sides:
        moves = np.empty(len(side))
        for start in range(0, len(side), CHUNK):
            x = side[start : start + CHUNK] - own
            moves[start : start + CHUNK] = 2 * x @ (own - other) + (x * (x - x @ transport)).sum(axis=1)
        influences.append(moves - moves.mean())
    return influences[0], influences[1]


def kernel_distances(generated: Features, real: Features) -> Doubles:
    """KID (Bińkowski et al. 2018) of 50 random subsets, drawn as torch-fidelity draws them: (50,)."""
    kid = load_module("metric_kid")
    generator, size = np.random.RandomState(SEED), min(KID_SUBSET_SIZE, len(generated), len(real))
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    distances = np.empty(KID_SUBSETS)
    for subset in range(KID_SUBSETS):  # one subset at a time in float64, never the whole matrix
        rows = [side[generator.choice(len(side), size, replace=False)].astype(np.float64) for side in (generated, real)]
        distances[subset] = kid.kernel_mmd(*rows, **options, kid_kernel_poly_coef0=1)
    return distances


def kernel_influences(generated: Features, real: Features) -> tuple[Doubles, Doubles]:
    """Influence of each row of either side on KID, to first order in the row's weight: (N,), (M,).

    This is twice the row's mean kernel with its own side minus that with the other side. At most 2,000 random rows of
    each side enter these means.
    """
    sides, influences = (generated, real), []
    chosen = [chosen_rows(len(side), KERNEL_ROWS) for side in sides]
    for own, other in ((0, 1), (1, 0)):
        apart = _kernel_sums(sides[own], sides[other][chosen[other]]) / len(chosen[other])
        among = _kernel_sums(sides[own], sides[own][chosen[own]])
        counts = np.full(len(among), float(len(chosen[own])))
        # A row does not pair with itself.
        among[chosen[own]] -= _kernel(np.einsum("nd,nd->n", *(sides[own][chosen[own]],) * 2), sides[own].shape[1])
        counts[chosen[own]] -= 1
        influences.append(2 * (among / np.maximum(counts, 1) - apart))
    return influences[0], influences[1]


def inception_scores(logits: Features) -> Doubles:
    """The Inception Score (Salimans et al. 2016) of each of ten shuffled parts of logits (N, classes)."""
    isc = load_module("metric_isc")
    shuffled, rows = logits[np.random.RandomState(SEED).permutation(len(logits))], len(logits)
    splits = min(ISC_SPLITS, rows)
    parts = [shuffled[i * rows // splits : (i + 1) * rows // splits] for i in range(splits)]
    scores = [isc.isc_features_to_metric(_tensor(part), 1, False) for part in parts]
    return np.array([score[isc.KEY_METRIC_ISC_MEAN] for score in scores])


def precision_recall(generated: Features, real: Features, k: int) -> tuple[float, float]:
    """torch-fidelity's precision and recall (Kynkäänniemi et al. 2019), to check rarefy's neighbour search."""
    prc = load_module("metric_prc")
    metric = prc.prc_features_to_metric(
        _tensor(generated),
        _tensor(real),
        prc_neighborhood=k,
        prc_batch_size=PRC_BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(metric[prc.KEY_METRIC_PRECISION]), float(metric[prc.KEY_METRIC_RECALL])


def local_outlier_factors(generated: Features, real: Features) -> Doubles:
    """LOF (Breunig et al. 2000) of at most 2,000 random generated rows among at most 2,000 random real ones.

    1: as dense as around the real neighbours; far above 1: an outlier. Uses 20 neighbours, or all if there are fewer.
    """
    fitted, scored = (side[chosen_rows(len(side), LOF_SAMPLE)] for side in (real, generated))
    neighbors = min(LOF_NEIGHBORS, len(fitted) - 1)
    model = LocalOutlierFactor(n_neighbors=neighbors, novelty=True, algorithm="brute").fit(fitted)
    return np.asarray(-model.score_samples(scored), np.float64)


def _kernel(products: Matrix, dim: int) -> Doubles:
    return np.asarray((products.astype(np.float64) / dim + 1) ** 3)


def _kernel_sums(rows: Features, others: Features) -> Doubles:
    """(N,) sums of each row's kernel with the others."""
    parts = (rows[start : start + CHUNK] @ others.T for start in range(0, len(rows), CHUNK))
    return np.concatenate([_kernel(part, rows.shape[1]).sum(axis=1) for part in parts])


def _tensor(features: Features) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))


def gaussian(rows: Matrix) -> tuple[Doubles, Doubles]:
    """Mean and covariance in float64, one chunk of rows at a time."""
    mean: Doubles = np.asarray(np.mean(rows, axis=0, dtype=np.float64))
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK] - mean
        total += part.T @ part
    return mean, total / (len(rows) - 1)


def _spanned(first: Features, second: Features) -> tuple[Matrix, Matrix]:
    """Both sets in an orthonormal basis of the space they span, if it has fewer dimensions than the features."""
    if len(first) + len(second) >= first.shape[1]:
        return first, second
    rows = np.concatenate([first, second]).astype(np.float64)
    rows -= rows.mean(axis=0)
    basis = np.linalg.qr(rows.T)[0]
    turned = rows @ basis
    return turned[: len(first)], turned[len(first) :]


def _transport(source: Doubles, target: Doubles) -> Doubles:
    root = _power(target, 0.5)
    return np.asarray(root @ _power(root @ source @ root, -0.5) @ root)


def _power(matrix: Doubles, exponent: float) -> Doubles:
    """A power of a symmetric positive semi-definite matrix; eigenvalues at rounding level count as zero."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    real = values > values[-1] * 1e-10
    powers = np.where(real, np.where(real, values, 1.0) ** exponent, 0.0)
    return np.asarray((vectors * powers) @ vectors.T)
