"""Computes the audit's metrics from features: ``set_metrics`` gives values, ``set_estimates`` also their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.blocks import Labels, Rows, block_contrasts, nobody, rounds
from rarefy.audit.metrics.bootstrap import Estimate, Floats, chosen_rows, finite_means, from_contrasts
from rarefy.audit.metrics.clipped import clipped_coverage, clipped_density
from rarefy.audit.metrics.distances import LOF_SAMPLE, frechet_distance, kernel_distances, local_outlier_factors
from rarefy.audit.metrics.kinds import METRIC_KINDS
from rarefy.audit.metrics.neighbors import Bools, Labelled, Manifold, Neighborhood, build_manifold, find_neighbors
from rarefy.audit.metrics.spread import BOTH, frechet_estimate, kernel_estimate
from rarefy.audit.metrics.tail import Tail, tail_members

DEFAULT_K = 3
LOF_FEWEST = (125, 500)  # rows of a block: LOF uses more neighbours than the other metrics
NOT_BY_BLOCKS = ("fid", "kid", "lof")
GENERATED, REAL, SUBSETS = "generated rows", "real rows", "random subsets"
OF_GENERATED = ("precision", "outside", "clipped_density", "clipped_coverage")  # fractions of the generated rows
OF_REAL = ("recall", "coverage")  # fractions of the real rows
DISTANCES = ("rarity", "avg_knn", "nearest")  # between neighbours: larger where there are fewer rows

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
    """estimates: every metric with its spread, by kind; kid_std: over KID's subsets; lof_count: rows LOF scored.

    class_vendi: the Vendi score of each class, by class id, if it was measured.
    """

    estimates: dict[str, Estimate]
    kid_std: float
    lof_count: int
    neighborhood: Neighborhood
    class_vendi: Mapping[int, float] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        return {kind: estimate.value for kind, estimate in self.estimates.items()}


@dataclass(frozen=True)
class Distances:
    """FID, KID of each of its subsets, and the local outlier factor of each row that was scored."""

    frechet: float
    kernel: Floats
    factors: Floats


def set_metrics(generated: Features, real: Manifold, tail: Bools | None = None, device: str = "cpu") -> SetMetrics:
    """Metrics of generated features (N, D) against the real ones, with the k of ``real``.

    tail (M,): the real rows behind tail_recall and tail_coverage, by default the rarest fifth of all (``tail_members``
    with labels takes it class by class). rarity is 0 where no generated row lies within the real data. Recall and
    coverage grow with N and FID falls with it: compare only sets of equal size.
    Raises DataError unless k < N and all features are finite.
    """
    neighborhood = find_neighbors(build_manifold(generated, real.k, device), real, device)
    per_generated, per_real = _columns(neighborhood, real, tail_members(real) if tail is None else tail)
    fid = frechet_distance(generated, real.features)
    return SetMetrics(fid=fid, **finite_means(per_generated), **finite_means(per_real))


def estimate_rounds(generated: int, real: int) -> int:
    """How often ``set_estimates`` calls its tick for so many rows, at most."""
    sampled = min(generated, LOF_SAMPLE), min(real, LOF_SAMPLE)
    return rounds(generated, real) + rounds(*sampled, LOF_FEWEST)


def set_estimates(
    generated: Labelled, real: Labelled, tail: Tail, device: str = "cpu", tick: Callable[[], None] = nobody
) -> SetEstimates:
    """The metrics of ``set_metrics``, KID and LOF, all with their spread over draws of both sides, class by class.

    tick: called as work goes on, see ``estimate_rounds``.
    """
    features, labels = (generated.manifold.features, real.manifold.features), (generated.labels, real.labels)
    distances = Distances(frechet_distance(*features), kernel_distances(*features), local_outlier_factors(*features))
    plain = set_values((generated.manifold, real.manifold), tail.members, distances, device)
    estimates = {
        **plain.estimates,
        **_neighbor_estimates(plain.values, (generated, real), tail, device, tick),
        "fid": frechet_estimate(plain.values["fid"], features, labels),
        "kid": kernel_estimate(plain.values["kid"], plain.kid_std, features, labels),
        "lof": _lof_estimate(plain.values["lof"], features, labels, tick),
    }
    return replace(plain, estimates={kind: estimates[kind] for kind in plain.estimates})


def set_values(
    sides: tuple[Manifold, Manifold], tail: Bools, distances: Distances, device: str = "cpu"
) -> SetEstimates:
    """As ``set_estimates``, without any spread. sides: the generated and the real rows."""
    neighborhood = find_neighbors(*sides, device)
    per_generated, per_real = _columns(neighborhood, sides[1], tail)
    values = {
        "fid": distances.frechet,
        "kid": float(distances.kernel.mean()),
        **finite_means(per_generated),
        **finite_means(per_real),
        **_clipped(neighborhood, sides[1]),
        "lof": float(distances.factors.mean()),
    }
    estimates = {kind: Estimate(values[kind]) for kind in METRIC_KINDS if kind in values}
    return SetEstimates(estimates, float(distances.kernel.std()), len(distances.factors), neighborhood)


def _columns(neighborhood: Neighborhood, real: Manifold, tail: Bools) -> tuple[Columns, Columns]:
    """The values per generated row and per real row that each metric averages; NaN is ignored."""
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
        "tail_recall": np.where(tail, neighborhood.recalled, np.nan),
        "tail_coverage": np.where(tail, neighborhood.covered, np.nan),
    }
    return per_generated, per_real


def _clipped(neighborhood: Neighborhood, real: Manifold) -> dict[str, float]:
    return {
        "clipped_density": clipped_density(neighborhood, real),
        "clipped_coverage": clipped_coverage(neighborhood, real),
    }


def _neighbor_estimates(
    values: Mapping[str, float],
    sides: tuple[Labelled, Labelled],
    tail: Tail,
    device: str,
    tick: Callable[[], None],
) -> dict[str, Estimate]:
    """The metrics of neighbourhoods, with their spread over blocks of both sides."""
    generated, real = sides

    def evaluate(rows: Rows, real_rows: Rows) -> Floats:
        part, own = generated.take(rows, device), real.take(real_rows, device)
        members = tail_members(own.manifold, own.labels) if tail.rule == "avgknn" else tail.members[real_rows]
        neighborhood = find_neighbors(part.manifold, own.manifold, device)
        columns = _columns(neighborhood, own.manifold, members)
        means = finite_means(columns[0]) | finite_means(columns[1]) | _clipped(neighborhood, own.manifold)
        return np.array([means[kind] for kind in kinds])

    kinds = [kind for kind in values if kind not in NOT_BY_BLOCKS]
    of_blocks = block_contrasts((generated.labels, real.labels), evaluate, real.manifold.k + 2, tick=tick)
    if of_blocks is None:
        return {kind: Estimate(values[kind]) for kind in kinds}
    contrasts, block_means = of_blocks
    for place, kind in enumerate(kinds):
        if kind in DISTANCES and block_means[place] > 0:
            contrasts[:, place] *= values[kind] / block_means[place]
    counts = {kind: len(generated.labels) for kind in OF_GENERATED} | {kind: len(real.labels) for kind in OF_REAL}
    counts |= {f"tail_{kind}": int(tail.members.sum()) for kind in OF_REAL}
    return {
        kind: from_contrasts(values[kind], contrasts[:, place], BOTH, counts.get(kind))
        for place, kind in enumerate(kinds)
    }


def _lof_estimate(
    value: float, features: tuple[Features, Features], labels: Labels, tick: Callable[[], None]
) -> Estimate:
    """LOF's spread over blocks of the rows that it uses."""
    chosen = [chosen_rows(len(side), LOF_SAMPLE) for side in features]
    rows = [side[own] for side, own in zip(features, chosen, strict=True)]

    def evaluate(generated: Rows, real: Rows) -> Floats:
        return np.array([local_outlier_factors(rows[0][generated], rows[1][real]).mean()])

    of_blocks = block_contrasts((labels[0][chosen[0]], labels[1][chosen[1]]), evaluate, 3, LOF_FEWEST, tick)
    return Estimate(value) if of_blocks is None else from_contrasts(value, of_blocks[0][:, 0], BOTH)
