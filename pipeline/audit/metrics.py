"""Every metric of the audit from two feature matrices, each with what it was computed from and its floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.audit.fidelity import Features, frechet_distance, kernel_distance, precision_recall
from pipeline.audit.neighbors import Bools, Manifold, Neighborhood, build_manifold, compare

DEFAULT_K = 3
TAIL_SHARE = 0.2


@dataclass(frozen=True)
class MetricKind:
    """What a metric's name means. ``uses_k``: it depends on the neighbourhood size."""

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
    "precision": MetricKind("Precision", "higher", True, "share of the images that lie within the real data"),
    "recall": MetricKind("Recall", "higher", True, "share of the real test images that the set reaches"),
    "tail_recall": MetricKind("Tail recall", "higher", True, "recall on the rarest fifth of the real test images"),
    "density": MetricKind(
        "Density", "higher", True, "how deep within the real data the images lie; 1 is as deep as real ones"
    ),
    "coverage": MetricKind("Coverage", "higher", True, "share of real neighbourhoods that hold at least one image"),
    "rarity": MetricKind(
        "Mean rarity",
        "higher",
        True,
        "mean radius of the tightest real neighbourhood that holds an image; read it with precision",
    ),
}


@dataclass(frozen=True)
class Comparison:
    """values by metric kind (``fid``, ``recall``, ...), kid_std, and the pass that the k-NN values come from."""

    values: dict[str, float]
    kid_std: float
    neighborhood: Neighborhood


def compare_features(
    generated: Features, real: Features, k: int = DEFAULT_K, extractor: str = "efficientnet-lite0"
) -> dict[str, float]:
    """All metrics of float32 features (N, D) against (M, D), by the names that metrics.json uses.

    extractor only names the distances (fid_efficientnet_lite0). Raises DataError unless 1 <= k < min(N, M). Recall and
    coverage grow with N and FID falls with it: compare only equal counts.
    """
    found = compare_manifolds(build_manifold(generated, k), build_manifold(real, k))
    return {metric_name(kind, extractor): value for kind, value in found.values.items()}


def metric_name(kind: str, extractor: str) -> str:
    """fid and kid carry the extractor, so that no one takes them for the Inception ones."""
    return f"{kind}_{extractor.replace('-', '_')}" if kind in ("fid", "kid") else kind


def tail_members(real: Manifold) -> Bools:
    """(M,) the rarest fifth of the real rows, by mean distance to their k nearest neighbours."""
    return np.asarray(real.mean_distance >= np.quantile(real.mean_distance, 1.0 - TAIL_SHARE))


def compare_manifolds(generated: Manifold, real: Manifold) -> Comparison:
    """FID, KID, precision and recall by torch-fidelity; the rest from our own k-NN pass."""
    hood = compare(generated, real)
    kid, kid_std = kernel_distance(generated.features, real.features)
    precision, recall = precision_recall(generated.features, real.features, real.k)
    values = {
        "fid": frechet_distance(generated.features, real.features),
        "kid": kid,
        "precision": precision,
        "recall": recall,
        "tail_recall": float(hood.recalled[tail_members(real)].mean()),
        "density": hood.density(real.k),
        "coverage": hood.coverage,
        # Zero where no image lies within the real data: nothing was added to its sparse parts.
        "rarity": float(np.nanmean(hood.rarity)) if np.isfinite(hood.rarity).any() else 0.0,
    }
    return Comparison(values, kid_std, hood)
