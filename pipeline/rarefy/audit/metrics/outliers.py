"""Local outlier factor by scikit-learn, on a stated sample of both sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import LocalOutlierFactor

from rarefy.audit.features.fidelity import Features
from rarefy.audit.metrics.bootstrap import chosen_rows

SAMPLE = 2000  # scikit-learn's search compares every pair on its own, in float64
NEIGHBORS = 20


def local_outlier_factors(generated: Features, real: Features) -> NDArray[np.float64]:
    """LOF (Breunig et al. 2000) of at most 2,000 random generated rows among at most 2,000 random real ones.

    1 is as dense as the real neighbours, far above 1 an outlier. 20 neighbours, or all where there are fewer.
    """
    held, asked = (side[chosen_rows(len(side), SAMPLE)] for side in (real, generated))
    neighbors = min(NEIGHBORS, len(held) - 1)
    model = LocalOutlierFactor(n_neighbors=neighbors, novelty=True, algorithm="brute").fit(held)
    return np.asarray(-model.score_samples(asked), np.float64)
