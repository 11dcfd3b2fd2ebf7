"""The Vendi score (Friedman and Dieng 2023): how many different images a class has, where similar ones count as one.

It is the exponential of the entropy of the eigenvalues of K / n, with K the cosine similarities of the n images'
features: 1 if all are alike, n if all are orthogonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.bootstrap import Estimate, around, centred, chosen_rows

MAX_ROWS = 1000  # per class; an eigenvalue problem of this size takes a fraction of a second

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Diversity:
    """classes: the Vendi score of each class, by class id; mean: over the classes."""

    classes: dict[int, float]
    mean: Estimate


def vendi_score(features: Features) -> float:
    """The Vendi score of features (N, D)."""
    return _score(features)[0]


def measure_diversity(features: Features, labels: NDArray[np.int64], over: str) -> Diversity:
    """The Vendi score of each class, of at most 1,000 random images of it.

    Their mean is resampled to first order: a resample's repeats would lower the score itself.
    """
    scores = _scores(features, labels)
    value = float(np.mean([score for score, _ in scores.values()]))
    influences = np.zeros(len(labels))
    for class_id, (_, moves) in scores.items():
        members = np.flatnonzero(labels == class_id)
        rows = members[chosen_rows(len(members), MAX_ROWS)]
        influences[rows] = moves * (len(labels) / len(rows) / len(scores))
    mean = around(value, (centred(influences, labels),), over)
    return Diversity({class_id: score for class_id, (score, _) in scores.items()}, mean)


def _scores(features: Features, labels: NDArray[np.int64]) -> dict[int, tuple[float, Doubles]]:
    """Score and influences of each class."""
    found = {}
    for class_id in np.unique(labels).tolist():
        members = np.flatnonzero(labels == class_id)
        found[class_id] = _score(features[members[chosen_rows(len(members), MAX_ROWS)]])
    return found


def _score(features: Features) -> tuple[float, Doubles]:
    """The score, and its derivative (N,) in each row's weight times N: the change of the score per row.

    With rho = X'X / n, the entropy H = -tr(rho log rho) changes towards a row x by -x' log(rho) x - H.
    """
    rows = features.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    tall = len(rows) > rows.shape[1]
    values, vectors = np.linalg.eigh((rows.T @ rows if tall else rows @ rows.T) / len(rows))
    shares = np.maximum(values, 0.0)
    logs = np.log(np.where(shares > 1e-15, shares, 1.0))
    score = float(np.exp(-(shares * logs).sum()))
    # Squared coordinates of each row along the eigenvectors of rho.
    squares = (rows @ vectors) ** 2 if tall else vectors**2 * shares * len(rows)
    return score, score * (-squares @ logs - np.log(score))
