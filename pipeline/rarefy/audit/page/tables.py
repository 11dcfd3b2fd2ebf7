"""The Parquet files of the audit: one row a measured image, the rarest images a class, suspected copies, resamples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarefy.audit.inputs.dataset import Rows
from rarefy.audit.measure import Measured
from rarefy.audit.metrics.bootstrap import Estimate
from rarefy.audit.metrics.copies import spacing_ratio
from rarefy.audit.metrics.summary import rarest
from rarefy.audit.schema import BOOTSTRAP_PATH, COPIES_PATH, RAREST_PATH
from rarefy.models.folder import ModelFolder
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png

SAMPLES_PATH = "audit/samples.parquet"
SHOWN_A_CLASS = 8
SHOWN_CLASSES = 20


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"description": meaning} | ({"unit": unit} if unit else {}))


SAMPLES_SCHEMA = pa.schema(
    [
        _field("key", pa.string(), "sample key in the shards"),
        _field("class_id", pa.int32(), "class asked for"),
        _field("class_name", pa.string(), "its name"),
        _field("predicted_id", pa.int32(), "class with the highest probability at t = 0"),
        _field("confidence", pa.float64(), "probability of class_id at t = 0", "1"),
        _field("entropy", pa.float64(), "entropy of the class probabilities at t = 0", "nat"),
        _field(
            "rarity",
            pa.float32(),
            "smallest k-NN radius of a real image whose ball holds this one; null outside",
            "feature distance",
        ),
        _field("nearest_distance", pa.float32(), "distance to the nearest real image", "feature distance"),
        _field("knn_distance", pa.float32(), "mean distance to the k nearest real images", "feature distance"),
        _field("nearest_real", pa.string(), "key of the nearest real image"),
        _field("copy_ratio", pa.float64(), "nearest_distance over that real image's mean distance to its own k", "1"),
        _field("real_balls", pa.int32(), "real images whose k-NN ball holds this one; 0 is outside the real data"),
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
        _field("other", pa.string(), "key of the twin or of the real image"),
        _field("kind", pa.string(), "reference, held-out, exact or near"),
        _field("distance", pa.float64(), "distance between the two", "feature distance"),
        _field("ratio", pa.float64(), "distance over the real images' spacing there", "1"),
        _field("png", pa.binary(), "the image"),
        _field("other_png", pa.binary(), "its twin"),
    ]
)
BOOTSTRAP_SCHEMA = pa.schema(
    [
        _field("metric", pa.string(), "name as in metrics.json"),
        _field("replicate", pa.int32(), "number of the resample"),
        _field("value", pa.float64(), "the metric in it"),
    ]
)


def write_samples(store: Store, rows: Rows, preset: ModelFolder, measured: Measured | None) -> None:
    """Write samples.parquet; the neighbour columns are null where there was no reference."""
    empty: list[None] = [None] * len(rows)
    hood = None if measured is None else measured.found.neighborhood
    columns = {
        "key": rows.key.tolist(),
        "class_id": rows.class_id,
        "class_name": [preset.class_name(class_id) for class_id in rows.class_id.tolist()],
        "predicted_id": rows.predicted_id,
        "confidence": rows.confidence,
        "entropy": rows.entropy,
        "rarity": empty if hood is None else pa.array(hood.rarity, from_pandas=True),
        "nearest_distance": empty if hood is None else hood.nearest,
        "knn_distance": empty if hood is None else hood.mean_distance,
        "nearest_real": empty,
        "copy_ratio": empty,
        "real_balls": empty if hood is None else hood.balls,
    }
    if measured is not None and hood is not None:
        columns["nearest_real"] = [measured.real_images.keys[place] for place in hood.nearest_index]
        columns["copy_ratio"] = spacing_ratio(hood.nearest, hood.nearest_index, measured.real)
    arrays = [pa.array(columns[field.name], type=field.type) for field in SAMPLES_SCHEMA]
    _write(store, SAMPLES_PATH, pa.Table.from_arrays(arrays, schema=SAMPLES_SCHEMA))


def write_rarest(store: Store, measured: Measured) -> None:
    """Write rarest.parquet of the (at most 20) classes with the rarest accepted images, by class id."""
    rows_of, floor = measured.run.measured, measured.floor_images
    accepted = np.where(rows_of.accepted, measured.found.neighborhood.rarity, np.nan)
    generated = rarest(rows_of.class_id, accepted, SHOWN_A_CLASS)
    real = rarest(floor.labels, measured.floor.neighborhood.rarity, SHOWN_A_CLASS)
    classes = sorted(list(generated)[:SHOWN_CLASSES])
    rows = [*_generated_rows(measured, generated, classes), *_real_rows(measured, real, classes)]
    _write(store, RAREST_PATH, pa.Table.from_pylist(rows, schema=RAREST_SCHEMA))


def write_copies(store: Store, measured: Measured) -> None:
    """Write copies.parquet: the suspicions that metrics.json lists, with both images."""
    images, keys = measured.run.images, measured.run.measured.key
    rows = [
        {
            "key": str(keys[twin.row]),
            "other": measured.other_name(twin),
            "kind": twin.kind,
            "distance": twin.distance,
            "ratio": twin.ratio,
            "png": encode_png(images[twin.row]),
            "other_png": encode_png(measured.other_image(twin)),
        }
        for twin in measured.twins.listed
    ]
    _write(store, COPIES_PATH, pa.Table.from_pylist(rows, schema=COPIES_SCHEMA))


def write_bootstrap(store: Store, estimates: Mapping[str, Estimate]) -> None:
    """Write bootstrap.parquet: 200 resamples of every metric that has them."""
    drawn = {name: estimate.replicates for name, estimate in estimates.items() if estimate.replicates is not None}
    arrays = [
        pa.array([name for name, values in drawn.items() for _ in values], pa.string()),
        pa.array([place for values in drawn.values() for place in range(len(values))], pa.int32()),
        pa.array(np.concatenate(list(drawn.values())) if drawn else np.empty(0), pa.float64()),
    ]
    _write(store, BOOTSTRAP_PATH, pa.Table.from_arrays(arrays, schema=BOOTSTRAP_SCHEMA))


def _generated_rows(measured: Measured, chosen: dict[int, list[int]], classes: list[int]) -> Iterator[dict[str, Any]]:
    run, hood = measured.run, measured.found.neighborhood
    for class_id in classes:
        for rank, row in enumerate(chosen[class_id]):
            yield _row("generated", class_id, rank, hood.rarity[row], run.images[row]) | {
                "key": str(run.measured.key[row]),
                "confidence": float(run.measured.confidence[row]),
                "predicted_id": int(run.measured.predicted_id[row]),
                "nearest_png": encode_png(measured.real_images.images[hood.nearest_index[row]]),
                "nearest_distance": float(hood.nearest[row]),
            }


def _real_rows(measured: Measured, chosen: dict[int, list[int]], classes: list[int]) -> Iterator[dict[str, Any]]:
    rarity = measured.floor.neighborhood.rarity
    for class_id in classes:
        for rank, row in enumerate(chosen.get(class_id, [])):
            floor = measured.floor_images
            yield _row("real", class_id, rank, rarity[row], floor.images[row]) | {"key": floor.keys[row]}


def _row(side: str, class_id: int, rank: int, rarity: np.float32, image: NDArray[np.uint8]) -> dict[str, Any]:
    return {
        "side": side,
        "class_id": class_id,
        "rank": rank,
        "rarity": float(rarity),
        "png": encode_png(image),
    }


def _write(store: Store, rel: str, table: pa.Table) -> None:
    with store.staged(rel) as path:
        pq.write_table(table, path, compression="zstd")
