"""From arrays to the tables of metrics.json: metric entries, histograms, one row a class, the rarest images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from rarefy.audit.features.extractors import Extractor
from rarefy.audit.inputs.dataset import Rows
from rarefy.audit.inputs.scores import ReferenceScores
from rarefy.audit.metrics.bootstrap import LEVEL, Estimate, estimate_mean
from rarefy.audit.metrics.comparison import GENERATED, METRIC_KINDS, REAL, metric_name
from rarefy.audit.metrics.neighbors import Neighborhood

BINS = 25
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Counts:
    """Images behind a metric: measured ones, real ones they are held against, and real ones behind the floor."""

    generated: int
    real: int
    floor: int


def metric_entries(
    found: Mapping[str, Estimate], floor: Mapping[str, Estimate], extractor: Extractor, k: int, counts: Counts
) -> dict[str, Any]:
    """One entry a metric; see audit.py for the keys."""
    return {
        metric_name(kind, extractor.name): {
            **_numbers(estimate, floor[kind]),
            "better": METRIC_KINDS[kind].better,
            "extractor": extractor.name,
            "layer": extractor.layer,
            "k": k if METRIC_KINDS[kind].uses_k else None,
            "generated_count": counts.generated,
            "real_count": counts.real,
            "floor_count": counts.floor,
        }
        for kind, estimate in found.items()
    }


def on_class_entry(
    rows: Rows, scores: ReferenceScores | None, labels: NDArray[np.int64] | None
) -> tuple[Estimate, dict[str, Any]]:
    """How often the classifier sees the class that was asked for; the floor is its accuracy on the real images."""
    found = estimate_mean(rows.predicted_id == rows.class_id, GENERATED)
    floor = None if scores is None or labels is None else estimate_mean(scores.predicted_id == labels, REAL)
    return found, {
        **_numbers(found, floor),
        "better": "higher",
        "extractor": "guiding classifier",
        "layer": "softmax at t = 0",
        "k": None,
        "generated_count": len(rows),
        "real_count": 0 if labels is None else len(labels),
        "floor_count": 0 if labels is None else len(labels),
    }


def _numbers(found: Estimate, floor: Estimate | None) -> dict[str, Any]:
    return {
        "value": found.value,
        "interval": found.interval,
        "interval_over": found.over if found.interval else None,
        "floor": None if floor is None else floor.value,
        "floor_interval": None if floor is None else floor.interval,
    }


def histogram(unit: str, generated: Array, real: Array | None, upper: float | None = None) -> dict[str, Any]:
    """Shares of finite values in 25 equal bins from 0 to ``upper`` (default: 99.5th percentile, last bin open)."""
    sides = {"generated": _finite(generated), "reference": None if real is None else _finite(real)}
    values = np.concatenate([side for side in sides.values() if side is not None])
    top = upper if upper is not None else float(np.quantile(values, 0.995)) if len(values) else 0.0
    edges = np.linspace(0.0, top if top > 0 else 1.0, BINS + 1)
    table: dict[str, Any] = {"unit": unit, "edges": edges.tolist()}
    for name, side in sides.items():
        if side is None or not len(side):
            table |= {name: None, f"{name}_mean": None}
            continue
        counts = np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0]
        table |= {name: (counts / counts.sum()).tolist(), f"{name}_mean": float(side.mean())}
    return table


def class_table(names: tuple[str, ...], planned: Mapping[int, int], rows: Rows, filtered: bool) -> list[dict[str, Any]]:
    """One row a class that was planned: counts, on-class rate, mean confidence and entropy, acceptance rate.

    filtered: the manifest asks for a filter; without one there is no acceptance rate.
    """
    table = []
    for class_id, count in sorted(planned.items()):
        own = rows.class_id == class_id
        drawn = int((rows.candidate[own] + 1).sum())
        row: dict[str, Any] = {
            "class_id": class_id,
            "class_name": names[class_id] if names else str(class_id),
            "planned": count,
            "count": int(own.sum()),
            **share("on_class_rate", rows.predicted_id[own] == class_id),
            "confidence": _mean(rows.confidence[own]),
            "entropy": _mean(rows.entropy[own]),
            "acceptance_rate": int(rows.accepted[own].sum()) / drawn if filtered and drawn else None,
            "confidence_w1": None,
            "entropy_w1": None,
        }
        table.append(row)
    return table


def add_score_columns(
    table: list[dict[str, Any]], rows: Rows, scores: ReferenceScores, labels: NDArray[np.int64]
) -> None:
    """Add the classifier's view of each class's real images, and how far the generated ones' is from it."""
    for row in table:
        own, real = rows.class_id == row["class_id"], labels == row["class_id"]
        row["reference_on_class_rate"] = _mean(scores.predicted_id[real] == row["class_id"])
        row["reference_confidence"] = _mean(scores.confidence[real])
        row["reference_entropy"] = _mean(scores.entropy[real])
        row["confidence_w1"] = wasserstein_1(rows.confidence[own], scores.confidence[real])
        row["entropy_w1"] = wasserstein_1(rows.entropy[own], scores.entropy[real])


def add_neighbor_columns(
    table: list[dict[str, Any]], class_ids: Array, labels: Array, hoods: tuple[Neighborhood, Neighborhood]
) -> None:
    """Add precision, recall and coverage of each class, and the recall and coverage of the floor's images."""
    found, floor = hoods
    for row in table:
        own, real = class_ids == row["class_id"], labels == row["class_id"]
        row |= share("precision", found.balls[own] > 0)
        row |= share("recall", found.recalled[real])
        row["recall_floor"] = _mean(floor.recalled[real])
        row |= share("coverage", found.covered[real])
        row["coverage_floor"] = _mean(floor.covered[real])


def share(name: str, hits: NDArray[np.bool_]) -> dict[str, Any]:
    """The share of hits under ``name``, and its 95% bootstrap interval over these rows: that of a binomial, exactly."""
    value, count = _mean(hits), len(hits)
    if value is None:
        return {name: None, f"{name}_interval": None}
    edges = binom.ppf(((1 - LEVEL) / 2, (1 + LEVEL) / 2), count, value) / count
    return {name: value, f"{name}_interval": edges.tolist()}


def wasserstein_1(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Area between the two distribution functions, in the values' unit; None where a side is empty."""
    if not len(first) or not len(second):
        return None
    edges = np.sort(np.concatenate([first, second]))
    shares = [np.searchsorted(np.sort(side), edges[:-1], side="right") / len(side) for side in (first, second)]
    return float(np.sum(np.abs(shares[0] - shares[1]) * np.diff(edges)))


def rarest(class_ids: Array, rarity: NDArray[np.float32], count: int) -> dict[int, list[int]]:
    """Rows of the ``count`` highest rarities a class, highest first; rows outside the real manifold are left out."""
    found: dict[int, list[int]] = {}
    order = np.argsort(-rarity, kind="stable")
    for row in order[np.isfinite(rarity[order])]:
        own = found.setdefault(int(class_ids[row]), [])
        if len(own) < count:
            own.append(int(row))
    return found


def _finite(values: Array) -> NDArray[np.float64]:
    wide = np.asarray(values, dtype=np.float64)
    return wide[np.isfinite(wide)]


def _mean(values: Array) -> float | None:
    return float(np.mean(values.astype(np.float64))) if len(values) else None
