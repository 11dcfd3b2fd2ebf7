"""The probe: multinomial logistic regression on features, small enough to be trained dozens of times in an audit.

It minimises the mean cross-entropy plus ``penalty``/2 times the squared weights. As the loss is a mean, a set and the
same set twice have the same optimum, so copies of the training images change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from rarefy.audit.features.extractors import Features

MAX_DIM = 256
ROWS_PER_DIM = 4  # directions with fewer images than this to estimate them are noise
PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
VALIDATION_SHARE = 0.2
TOLERANCE = 1e-4  # of the gradient
MAX_STEPS = 300

Labels = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Standardizer:
    """Principal axes of the real features, each scaled to unit variance: at most 256 of them."""

    mean: Features
    axes: Features

    def __call__(self, features: Features) -> Features:
        """(N, D) -> (N, dim)."""
        return np.asarray((features - self.mean) @ self.axes, np.float32)


@dataclass(frozen=True)
class Probe:
    """weights (dim + 1, classes): the last row is the bias."""

    weights: Doubles

    def logits(self, rows: Features) -> Features:
        weights = self.weights.astype(np.float32)
        return np.asarray(rows @ weights[:-1] + weights[-1])

    def predict(self, rows: Features) -> Labels:
        """(N,) the most probable class of standardised features (N, dim)."""
        return np.asarray(self.logits(rows).argmax(axis=1))


def fit_standardizer(features: Features) -> Standardizer:
    """Find the axes with the largest variance of features (N, D)."""
    mean = features.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(features, rowvar=False, dtype=np.float64).reshape([features.shape[1]] * 2))
    dim = max(1, min(MAX_DIM, len(features) // ROWS_PER_DIM, int((values > values[-1] * 1e-7).sum())))
    scale = np.sqrt(np.maximum(values[-dim:], np.finfo(np.float64).tiny))
    return Standardizer(mean, (vectors[:, -dim:] / scale).astype(np.float32))


def fit_probe(rows: Features, labels: Labels, classes: int, penalty: float, start: Probe | None = None) -> Probe:
    """Train on standardised features (N, dim) with class ids (N,). start: a solution close by, which saves steps.

    The problem is convex: where it starts does not change the optimum.
    """
    dim = rows.shape[1]
    first = np.zeros((dim + 1, classes)) if start is None else start.weights
    options = {"maxiter": MAX_STEPS, "gtol": TOLERANCE, "ftol": 0.0}
    found = minimize(_loss, first.ravel(), (rows, labels, classes, penalty), "L-BFGS-B", jac=True, options=options)
    return Probe(found.x.reshape(dim + 1, classes))


def choose_penalty(rows: Features, labels: Labels, classes: int) -> float:
    """The penalty with the lowest cross-entropy on a random fifth of the rows, trained on the others."""
    order = np.random.default_rng(0).permutation(len(rows))
    cut = max(1, round(VALIDATION_SHARE * len(rows)))
    held, kept = order[:cut], order[cut:]
    best, lowest, probe = PENALTIES[0], np.inf, None
    for penalty in PENALTIES:  # from the strongest: each solution is close to the next one
        probe = fit_probe(rows[kept], labels[kept], classes, penalty, probe)
        loss = _loss(probe.weights.ravel(), rows[held], labels[held], classes, 0.0)[0]
        if loss < lowest:
            best, lowest = penalty, loss
    return best


def _loss(flat: Doubles, rows: Features, labels: Labels, classes: int, penalty: float) -> tuple[float, Doubles]:
    """The penalised mean cross-entropy and its gradient; products in float32, sums of the loss in float64."""
    probe = Probe(flat.reshape(-1, classes))
    logits = probe.logits(rows)
    logits -= logits.max(axis=1, keepdims=True)
    own = np.arange(len(rows)), labels
    chosen = logits[own].astype(np.float64)
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    loss = float((np.log(sums[:, 0].astype(np.float64)) - chosen).mean())
    logits /= sums
    logits[own] -= 1.0
    logits /= len(rows)
    slopes, weights = rows.T @ logits, probe.weights[:-1]
    gradient = np.concatenate([slopes + penalty * weights, logits.sum(axis=0, keepdims=True)])
    return loss + penalty / 2 * float((weights**2).sum()), gradient.ravel().astype(np.float64)
