"""From arrays to the tables of metrics.json: metric entries, histograms, one row a class, the rarest images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.dataset import Rows
from pipeline.audit.features import Extractor
from pipeline.audit.metrics import METRIC_KINDS, Comparison, metric_name
from pipeline.audit.neighbors import Neighborhood

BINS = 25
Array = NDArray[np.generic]


@dataclass(frozen=True)
class Counts:
    """Images behind a metric: measured ones, real ones they are held against, and real ones behind the floor."""

    generated: int
    real: int
    floor: int


@dataclass(frozen=True)
class ReferenceScores:
    """The classifier's view of the real images at t = 0: p(own class), entropy in nats, most probable class."""

    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    predicted_id: NDArray[np.int64]


def metric_entries(
    found: Comparison, floor: Comparison, extractor: Extractor, k: int, counts: Counts
) -> dict[str, Any]:
    """One entry a metric; see audit.py for the keys."""
    entries: dict[str, Any] = {}
    for kind, value in found.values.items():
        entries[metric_name(kind, extractor.name)] = {
            "value": value,
            "floor": floor.values[kind],
            "better": METRIC_KINDS[kind].better,
            "extractor": extractor.name,
            "layer": extractor.layer,
            "k": k if METRIC_KINDS[kind].uses_k else None,
            "generated_count": counts.generated,
            "real_count": counts.real,
            "floor_count": counts.floor,
        }
    entries[metric_name("kid", extractor.name)] |= {"std": found.kid_std, "floor_std": floor.kid_std}
    return entries


def on_class_entry(rows: Rows, scores: ReferenceScores | None, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """How often the classifier sees the class that was asked for; the floor is its accuracy on the real images."""
    floor = None if scores is None or labels is None else float((scores.predicted_id == labels).mean())
    return {
        "value": float((rows.predicted_id == rows.class_id).mean()),
        "floor": floor,
        "better": "higher",
        "extractor": "guiding classifier",
        "layer": "softmax at t = 0",
        "k": None,
        "generated_count": len(rows),
        "real_count": 0 if labels is None else len(labels),
        "floor_count": 0 if labels is None else len(labels),
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


def class_table(
    names: tuple[str, ...], planned: Mapping[int, int], rows: Rows, scores: ReferenceScores | None, labels: Array | None
) -> list[dict[str, Any]]:
    """One row a class that was planned: counts, on-class rate, mean confidence and entropy, theirs on real images."""
    table = []
    for class_id, count in sorted(planned.items()):
        own = rows.class_id == class_id
        row: dict[str, Any] = {
            "class_id": class_id,
            "class_name": names[class_id] if names else str(class_id),
            "planned": count,
            "count": int(own.sum()),
            "on_class_rate": _mean(rows.predicted_id[own] == class_id),
            "confidence": _mean(rows.confidence[own]),
            "entropy": _mean(rows.entropy[own]),
        }
        if scores is not None and labels is not None:
            real = labels == class_id
            row["reference_on_class_rate"] = _mean(scores.predicted_id[real] == class_id)
            row["reference_confidence"] = _mean(scores.confidence[real])
            row["reference_entropy"] = _mean(scores.entropy[real])
        table.append(row)
    return table


def add_neighbor_columns(
    table: list[dict[str, Any]], class_ids: Array, labels: Array, hoods: tuple[Neighborhood, Neighborhood]
) -> None:
    """Add precision and recall of each class, and the recall that the floor's images reach."""
    found, floor = hoods
    for row in table:
        own, real = class_ids == row["class_id"], labels == row["class_id"]
        row["precision"] = _mean(found.balls[own] > 0)
        row["recall"] = _mean(found.recalled[real])
        row["recall_floor"] = _mean(floor.recalled[real])


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
