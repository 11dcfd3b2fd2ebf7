"""The feature space on paper: real images' two main directions, generated ones drawn over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from rarefy.audit.measure import Measured
from rarefy.audit.metrics.bootstrap import chosen_rows

POINTS = 2000
DIGITS = 4


def feature_map(measured: Measured) -> dict[str, Any]:
    """The ``map`` of metrics.json: PCA of at most 2,000 random real rows, at most 2,000 generated ones projected."""
    real, run = measured.real.features, measured.run.measured
    rows, own = chosen_rows(len(real), POINTS), chosen_rows(len(run), POINTS)
    model = PCA(n_components=2, svd_solver="randomized", random_state=0).fit(real[rows])
    drawn = np.round(model.transform(real[rows]).astype(float), DIGITS).tolist()
    over = np.round(model.transform(measured.generated.features[own]).astype(float), DIGITS).tolist()
    labels, classes = measured.real_images.labels[rows].tolist(), run.class_id[own].tolist()
    return {
        "method": "pca",
        "explained": [float(share) for share in model.explained_variance_ratio_],
        "generated": [
            [*point, class_id, key] for point, class_id, key in zip(over, classes, run.key[own].tolist(), strict=True)
        ],
        "real": [[*point, class_id] for point, class_id in zip(drawn, labels, strict=True)],
    }
