"""Computes the audit's metrics from features: ``set_metrics`` gives values, ``set_estimates`` also resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.bootstrap import Estimate, around, estimate_mean, estimate_means, finite_means, moved_also
from rarefy.audit.metrics.distances import (
    frechet_distance,
    frechet_influences,
    kernel_distances,
    kernel_influences,
    local_outlier_factors,
)
from rarefy.audit.metrics.kinds import METRIC_KINDS
from rarefy.audit.metrics.neighbors import Bools, Manifold, Neighborhood, build_manifold, find_neighbors
from rarefy.audit.metrics.tail import tail_members

DEFAULT_K = 3
GENERATED, REAL, BOTH, SUBSETS = "generated rows", "real rows", "both sides", "random subsets"

Columns = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class SetMetrics:
    """The metrics that are quick to compute, without intervals; METRIC_KINDS has their meaning."""

    fid: float
    precision: float
    recall: float
    tail_recall: float
    density: float
    coverage: float
    tail_coverage: float
    rarity: float
    outside: float
    avg_knn: float
    nearest: float


@dataclass(frozen=True)
class SetEstimates:
    """estimates: every metric with its resamples, by kind; kid_std: over KID's subsets; lof_count: rows LOF scored."""

    estimates: dict[str, Estimate]
    kid_std: float
    lof_count: int
    neighborhood: Neighborhood

    @property
    def values(self) -> dict[str, float]:
        return {kind: estimate.value for kind, estimate in self.estimates.items()}


def set_metrics(generated: Features, real: Manifold, tail: Bools | None = None, device: str = "cpu") -> SetMetrics:
    """Metrics of generated features (N, D) against the real ones, with the k of ``real``.

    tail (M,): the real rows behind tail_recall and tail_coverage, by default the rarest fifth. rarity is 0 where no
    generated row lies within the real data. Recall and coverage grow with N and FID falls with it: compare only sets
    of equal size. Raises DataError unless k < N and all features are finite.
    """
    neighborhood = find_neighbors(build_manifold(generated, real.k, device), real, device)
    per_generated, per_real = _columns(neighborhood, real, tail)
    fid = frechet_distance(generated, real.features)
    return SetMetrics(fid=fid, **finite_means(per_generated), **finite_means(per_real))


def set_estimates(generated: Manifold, real: Manifold, tail: Bools | None = None, device: str = "cpu") -> SetEstimates:
    """The metrics of ``set_metrics``, KID and LOF, all with bootstrap resamples."""
    neighborhood = find_neighbors(generated, real, device)
    per_generated, per_real = _columns(neighborhood, real, tail)
    features = generated.features, real.features
    subsets, factors = kernel_distances(*features), local_outlier_factors(*features)
    estimates = {
        "fid": around(frechet_distance(*features), frechet_influences(*features), BOTH),
        "kid": around(float(subsets.mean()), kernel_influences(*features), BOTH),
        **estimate_means(per_generated, GENERATED),
        **_real_estimates(per_real, neighborhood),
        "lof": estimate_mean(factors, GENERATED),
    }
    ordered = {kind: estimates[kind] for kind in METRIC_KINDS if kind in estimates}
    return SetEstimates(ordered, float(subsets.std()), len(factors), neighborhood)


def _columns(neighborhood: Neighborhood, real: Manifold, tail: Bools | None) -> tuple[Columns, Columns]:
    """The values per generated row and per real row that each metric averages; NaN is ignored."""
    members = tail_members(real) if tail is None else tail
    per_generated = {
        "precision": neighborhood.balls > 0,
        "density": neighborhood.balls / real.k,
        "rarity": neighborhood.rarity,
        "outside": neighborhood.balls == 0,
        "avg_knn": neighborhood.mean_distance,
        "nearest": neighborhood.nearest,
    }
    per_real = {
        "recall": neighborhood.recalled,
        "coverage": neighborhood.covered,
        "tail_recall": np.where(members, neighborhood.recalled, np.nan),
        "tail_coverage": np.where(members, neighborhood.covered, np.nan),
    }
    return per_generated, per_real


def _real_estimates(per_real: Columns, neighborhood: Neighborhood) -> dict[str, Estimate]:
    """Recall and coverage also vary with the generated side: by the rows that are the only one to reach a real row."""
    estimates, rows = estimate_means(per_real, REAL), len(neighborhood.nearest)
    for name, column in per_real.items():
        sole = neighborhood.sole_recall if name.endswith("recall") else neighborhood.sole_cover
        counted = np.isfinite(column.astype(np.float64))
        reached_by = sole[counted & (sole >= 0)]
        # What the fraction loses without each generated row, times N: a resample's mean is then the sum over its rows.
        lost = rows * np.bincount(reached_by, minlength=rows) / counted.sum()
        estimates[name] = moved_also(estimates[name], lost, BOTH)
    return estimates
