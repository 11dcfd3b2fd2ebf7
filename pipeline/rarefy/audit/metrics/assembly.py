"""The one place that turns features into the audit's metrics: ``set_metrics`` for values, ``set_estimates`` for all."""

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
    """The metrics that take seconds, without intervals; see METRIC_KINDS for their meaning."""

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
    """Everything that ``set_metrics`` gives, with KID, LOF and bootstrap resamples."""
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
    """Per generated row and per real row: the numbers that each metric averages; NaN takes no part."""
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
    """Recall and coverage depend on both sides: also on the generated rows that alone reach a real one."""
    estimates, rows = estimate_means(per_real, REAL), len(neighborhood.nearest)
    for name, column in per_real.items():
        sole = neighborhood.sole_recall if name.endswith("recall") else neighborhood.sole_cover
        counted = np.isfinite(column.astype(np.float64))
        reached_by = sole[counted & (sole >= 0)]
        # What the fraction loses without a generated row; a resample's mean of this is its sum over the rows drawn.
        lost = rows * np.bincount(reached_by, minlength=rows) / counted.sum()
        estimates[name] = moved_also(estimates[name], lost, BOTH)
    return estimates
