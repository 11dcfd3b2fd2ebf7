"""Every metric of the audit from two feature matrices, each with what it was computed from and its resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rarefy.audit.features.fidelity import (
    Features,
    frechet_distance,
    frechet_influences,
    kernel_distances,
    kernel_influences,
)
from rarefy.audit.metrics.bootstrap import Estimate, around, estimate_mean, estimate_means, moved_also
from rarefy.audit.metrics.neighbors import Bools, Manifold, Neighborhood, build_manifold, compare
from rarefy.audit.metrics.outliers import local_outlier_factors
from rarefy.audit.metrics.tail import tail_members

DEFAULT_K = 3
GENERATED, REAL, BOTH, SUBSETS = "generated rows", "real rows", "both sides", "random subsets"


@dataclass(frozen=True)
class MetricKind:
    """What a metric's name means. better: higher, lower or neither; uses_k: it depends on the neighbourhood size."""

    label: str
    better: str
    uses_k: bool
    meaning: str


METRIC_KINDS: dict[str, MetricKind] = {
    "fid": MetricKind(
        "FID",
        "lower",
        False,
        "Fréchet distance between the two sets' Gaussians in feature space; biased upward by few images",
    ),
    "kid": MetricKind("KID", "lower", False, "unbiased kernel distance between the two sets in feature space"),
    "inception_score": MetricKind(
        "Inception Score", "higher", False, "how sure the extractor's classes are of each image, and how many they use"
    ),
    "precision": MetricKind("Precision", "higher", True, "share of the images that lie within the real data"),
    "recall": MetricKind("Recall", "higher", True, "share of the real test images that the set reaches"),
    "tail_recall": MetricKind("Tail recall", "higher", True, "recall on the rarest of the real test images"),
    "density": MetricKind(
        "Density", "higher", True, "how deep within the real data the images lie; 1 is as deep as real ones"
    ),
    "coverage": MetricKind("Coverage", "higher", True, "share of real neighbourhoods that hold at least one image"),
    "tail_coverage": MetricKind("Tail coverage", "higher", True, "coverage of the rarest of the real test images"),
    "rarity": MetricKind(
        "Mean rarity",
        "higher",
        True,
        "mean radius of the tightest real neighbourhood that holds an image; read it with precision",
    ),
    "outside": MetricKind("Outside", "lower", True, "share of the images outside every real neighbourhood"),
    "avg_knn": MetricKind(
        "AvgkNN", "neither", True, "mean distance to the k nearest real images; large in sparse parts and off the data"
    ),
    "nearest": MetricKind(
        "Nearest real",
        "neither",
        False,
        "mean distance to the nearest real image; small is near to a copy, large is off the data",
    ),
    "lof": MetricKind(
        "Local outlier factor", "lower", False, "how much sparser it is around an image than around its neighbours"
    ),
    "duplicates": MetricKind("Duplicates", "lower", True, "share of the images with an exact or near twin in the set"),
    "copies": MetricKind("Copies", "lower", True, "share of the images that look copied from a real one"),
}


@dataclass(frozen=True)
class Comparison:
    """Estimates by metric kind (``fid``, ``recall``, ...), KID's deviation, LOF's sample, and the k-NN pass."""

    estimates: dict[str, Estimate]
    kid_std: float
    lof_count: int
    neighborhood: Neighborhood

    @property
    def values(self) -> dict[str, float]:
        return {kind: estimate.value for kind, estimate in self.estimates.items()}


def compare_features(
    generated: Features, real: Features, k: int = DEFAULT_K, extractor: str = "efficientnet-lite0"
) -> dict[str, float]:
    """All metrics of float32 features (N, D) against (M, D), by the names that metrics.json uses.

    extractor only names the distances (fid_efficientnet_lite0). Raises DataError unless 1 <= k < min(N, M) and all
    features are finite. Recall and coverage grow with N and FID falls with it: compare only equal counts.
    """
    found = compare_manifolds(build_manifold(generated, k), build_manifold(real, k))
    return {metric_name(kind, extractor): value for kind, value in found.values.items()}


def metric_name(kind: str, extractor: str) -> str:
    """fid and kid carry the extractor, so that no one takes them for the Inception ones."""
    return f"{kind}_{extractor.replace('-', '_')}" if kind in ("fid", "kid") else kind


def compare_manifolds(
    generated: Manifold, real: Manifold, tail: Bools | None = None, device: str = "cpu"
) -> Comparison:
    """FID and KID by torch-fidelity, LOF by scikit-learn, the rest from our own k-NN pass.

    tail (M,): the real rows of tail recall and tail coverage; by default the sparsest fifth. Precision and recall are
    torch-fidelity's (tests hold them together); its own code takes minutes for what the pass has found already.
    """
    hood = compare(generated, real, device)
    subsets = kernel_distances(generated.features, real.features)
    factors = local_outlier_factors(generated.features, real.features)
    estimates = {
        "fid": around(
            frechet_distance(generated.features, real.features),
            frechet_influences(generated.features, real.features),
            BOTH,
        ),
        "kid": around(float(subsets.mean()), kernel_influences(generated.features, real.features), BOTH),
        **_row_estimates(hood, real, tail_members(real) if tail is None else tail),
        "lof": estimate_mean(factors, GENERATED),
    }
    ordered = {kind: estimates[kind] for kind in METRIC_KINDS if kind in estimates}
    return Comparison(ordered, float(subsets.std()), len(factors), hood)


def _row_estimates(hood: Neighborhood, real: Manifold, tail: Bools) -> dict[str, Estimate]:
    of_generated = {
        "precision": hood.balls > 0,
        "density": hood.balls / real.k,
        # Zero where no image lies within the real data: nothing was added to its sparse parts.
        "rarity": hood.rarity,
        "outside": hood.balls == 0,
        "avg_knn": hood.mean_distance,
        "nearest": hood.nearest,
    }
    of_real = {
        "recall": hood.recalled,
        "coverage": hood.covered,
        "tail_recall": np.where(tail, hood.recalled, np.nan),
        "tail_coverage": np.where(tail, hood.covered, np.nan),
    }
    sole = {
        "recall": hood.sole_recall,
        "coverage": hood.sole_cover,
        "tail_recall": np.where(tail, hood.sole_recall, -1),
        "tail_coverage": np.where(tail, hood.sole_cover, -1),
    }
    found, rows = estimate_means(of_real, REAL), len(hood.nearest)
    for name, places in sole.items():
        # What the share loses without a generated row; a resample's mean of this is its sum over the rows drawn.
        lost = rows * np.bincount(places[places >= 0], minlength=rows) / np.isfinite(of_real[name]).sum()
        found[name] = moved_also(found[name], lost, BOTH)
    return estimate_means(of_generated, GENERATED) | found
