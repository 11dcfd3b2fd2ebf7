"""The Parquet files of the audit: measured images, the rarest images per class, suspected copies, and resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rarefy.audit.inputs.dataset import Rows
from rarefy.audit.metrics.summary import rarest
from rarefy.audit.schema import BOOTSTRAP_PATH, COPIES_PATH, RAREST_PATH, SAMPLES_PATH
from rarefy.errors import ShardError
from rarefy.models.folder import ModelFolder
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png

if TYPE_CHECKING:  # the page reads these tables without torch
    from rarefy.audit.measure import Measured
    from rarefy.audit.metrics.bootstrap import Estimate

SHOWN_PER_CLASS = 8
SHOWN_CLASSES = 20


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"description": meaning} | ({"unit": unit} if unit else {}))


SAMPLES_SCHEMA = pa.schema(
    [
        _field("key", pa.string(), "sample key in the shards"),
        _field("class_id", pa.int32(), "requested class"),
        _field("class_name", pa.string(), "its name"),
        _field("predicted_id", pa.int32(), "class with the highest probability at t = 0; null without a classifier"),
        _field("confidence", pa.float64(), "probability of class_id at t = 0", "1"),
        _field("entropy", pa.float64(), "entropy of the class probabilities at t = 0", "nat"),
        _field(
            "rarity",
            pa.float32(),
            "smallest k-NN radius of a real image whose ball contains this one; null outside",
            "feature distance",
        ),
        _field("nearest_distance", pa.float32(), "distance to the nearest real image", "feature distance"),
        _field("knn_distance", pa.float32(), "mean distance to the k nearest real images", "feature distance"),
        _field("nearest_real", pa.string(), "key of the nearest real image"),
        _field("copy_ratio", pa.float64(), "nearest_distance over that real image's own knn_distance", "1"),
        _field("real_balls", pa.int32(), "real images whose k-NN ball contains this one; 0 is outside the real data"),
    ]
)
RAREST_SCHEMA = pa.schema(
    [
        _field("side", pa.string(), "generated or real"),
        _field("class_id", pa.int32(), "class"),
        _field("rank", pa.int32(), "0 is the rarest of its class"),
        _field("key", pa.string(), "sample key, or the real image's"),
        _field("rarity", pa.float32(), "rarity as in samples.parquet", "feature distance"),
        _field("confidence", pa.float64(), "probability of class_id at t = 0; null for a real image", "1"),
        _field("predicted_id", pa.int32(), "most probable class; null for a real image"),
        _field("png", pa.binary(), "the image"),
        _field("nearest_png", pa.binary(), "the nearest real image; null for a real image"),
        _field("nearest_distance", pa.float32(), "distance to it; null for a real image", "feature distance"),
    ]
)
COPIES_SCHEMA = pa.schema(
    [
        _field("key", pa.string(), "sample key"),
        _field("other", pa.string(), "key of the real image or of the twin"),
        _field("kind", pa.string(), "reference, held-out, exact or near"),
        _field("distance", pa.float64(), "distance between the two", "feature distance"),
        _field("ratio", pa.float64(), "distance over the real images' spacing there", "1"),
        _field("png", pa.binary(), "the image"),
        _field("other_png", pa.binary(), "the other image"),
    ]
)
BOOTSTRAP_SCHEMA = pa.schema(
    [
        _field("metric", pa.string(), "name as in metrics.json"),
        _field("replicate", pa.int32(), "index of the resample"),
        _field("value", pa.float64(), "the metric in this resample"),
    ]
)


@dataclass(frozen=True)
class RarestImage:
    """A row of rarest.parquet; the fields after png are None for a real image, scores also without a classifier."""

    side: str
    class_id: int
    rank: int
    key: str
    rarity: float
    png: bytes
    confidence: float | None = None
    predicted_id: int | None = None
    nearest_png: bytes | None = None
    nearest_distance: float | None = None


@dataclass(frozen=True)
class CopyImages:
    """A row of copies.parquet."""

    key: str
    other: str
    kind: str
    distance: float
    ratio: float
    png: bytes
    other_png: bytes


def write_samples(store: Store, rows: Rows, preset: ModelFolder, measured: Measured | None) -> None:
    """Write samples.parquet; the neighbour columns are null without a reference."""
    columns: dict[str, Any] = {
        "key": rows.key.tolist(),
        "class_id": rows.class_id,
        "class_name": [preset.class_name(class_id) for class_id in rows.class_id.tolist()],
    }
    if preset.classifier is not None:
        columns |= {name: getattr(rows, name) for name in ("predicted_id", "confidence", "entropy")}
    if measured is not None:
        from rarefy.audit.metrics.copies import spacing_ratio

        neighborhood = measured.of_run.neighborhood
        columns |= {
            "rarity": pa.array(neighborhood.rarity, from_pandas=True),
            "nearest_distance": neighborhood.nearest,
            "knn_distance": neighborhood.mean_distance,
            "nearest_real": [measured.real_images.keys[place] for place in neighborhood.nearest_index],
            "copy_ratio": spacing_ratio(neighborhood.nearest, neighborhood.nearest_index, measured.real),
            "real_balls": neighborhood.balls,
        }
    empty: list[None] = [None] * len(rows)
    arrays = [pa.array(columns.get(field.name, empty), type=field.type) for field in SAMPLES_SCHEMA]
    _write(store, SAMPLES_PATH, pa.Table.from_arrays(arrays, schema=SAMPLES_SCHEMA))


def write_rarest(store: Store, measured: Measured) -> None:
    """Write rarest.parquet, for the (at most 20) classes with the rarest accepted images, by class id."""
    accepted = np.where(measured.run.measured.accepted, measured.of_run.neighborhood.rarity, np.nan)
    generated = rarest(measured.run.measured.class_id, accepted, SHOWN_PER_CLASS)
    real = rarest(measured.baseline_images.labels, measured.of_baseline.neighborhood.rarity, SHOWN_PER_CLASS)
    classes = sorted(list(generated)[:SHOWN_CLASSES])
    rows = [*_generated_rows(measured, generated, classes), *_real_rows(measured, real, classes)]
    _write(store, RAREST_PATH, pa.Table.from_pylist([asdict(row) for row in rows], schema=RAREST_SCHEMA))


def write_copies(store: Store, measured: Measured) -> None:
    """Write copies.parquet: the suspected copies that metrics.json lists, with both images."""
    rows = [
        CopyImages(
            key=str(measured.run.measured.key[twin.row]),
            other=measured.other_key(twin),
            kind=twin.kind,
            distance=twin.distance,
            ratio=twin.ratio,
            png=encode_png(measured.run.images[twin.row]),
            other_png=encode_png(measured.other_image(twin)),
        )
        for twin in measured.twins.listed
    ]
    _write(store, COPIES_PATH, pa.Table.from_pylist([asdict(row) for row in rows], schema=COPIES_SCHEMA))


def write_bootstrap(store: Store, estimates: Mapping[str, Estimate]) -> None:
    """Write bootstrap.parquet: 200 resamples of every metric that has them."""
    drawn = {name: estimate.replicates for name, estimate in estimates.items() if estimate.replicates is not None}
    arrays = [
        pa.array([name for name, values in drawn.items() for _ in values], pa.string()),
        pa.array([place for values in drawn.values() for place in range(len(values))], pa.int32()),
        pa.array(np.concatenate(list(drawn.values())) if drawn else np.empty(0), pa.float64()),
    ]
    _write(store, BOOTSTRAP_PATH, pa.Table.from_arrays(arrays, schema=BOOTSTRAP_SCHEMA))


def read_rarest(store: Store) -> list[RarestImage]:
    """The rows of rarest.parquet, none if there is no such file. Raises ShardError if it cannot be read."""
    return [RarestImage(**row) for row in _read(store, RAREST_PATH)] if store.exists(RAREST_PATH) else []


def read_copies(store: Store) -> list[CopyImages]:
    """The rows of copies.parquet, none if there is no such file. Raises ShardError if it cannot be read."""
    return [CopyImages(**row) for row in _read(store, COPIES_PATH)] if store.exists(COPIES_PATH) else []


def read_replicates(store: Store) -> dict[str, dict[int, float]]:
    """{metric: {resample: finite value}}. Raises OutputError or ShardError if the file cannot be read."""
    replicates: dict[str, dict[int, float]] = {}
    for row in _read(store, BOOTSTRAP_PATH):
        if row["value"] is not None and np.isfinite(row["value"]):
            replicates.setdefault(row["metric"], {})[row["replicate"]] = row["value"]
    return replicates


def _generated_rows(measured: Measured, chosen: dict[int, list[int]], classes: list[int]) -> list[RarestImage]:
    run, neighborhood = measured.run, measured.of_run.neighborhood
    return [
        RarestImage(
            side="generated",
            class_id=class_id,
            rank=rank,
            key=str(run.measured.key[row]),
            rarity=float(neighborhood.rarity[row]),
            png=encode_png(run.images[row]),
            confidence=float(run.measured.confidence[row]) if run.scored else None,
            predicted_id=int(run.measured.predicted_id[row]) if run.scored else None,
            nearest_png=encode_png(measured.real_images.images[neighborhood.nearest_index[row]]),
            nearest_distance=float(neighborhood.nearest[row]),
        )
        for class_id in classes
        for rank, row in enumerate(chosen[class_id])
    ]


def _real_rows(measured: Measured, chosen: dict[int, list[int]], classes: list[int]) -> list[RarestImage]:
    images, rarity = measured.baseline_images, measured.of_baseline.neighborhood.rarity
    return [
        RarestImage("real", class_id, rank, images.keys[row], float(rarity[row]), encode_png(images.images[row]))
        for class_id in classes
        for rank, row in enumerate(chosen.get(class_id, []))
    ]


def _write(store: Store, rel: str, table: pa.Table) -> None:
    with store.staged(rel) as path:
        pq.write_table(table, path, compression="zstd")


def _read(store: Store, rel: str) -> list[dict[str, Any]]:
    try:
        with store.local_copy(rel) as path:
            rows: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{rel}: not a readable Parquet file; run audit again") from error
    return rows
