"""The two Parquet files of the audit: one row a measured image, and the rarest images a class of both sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.audit.dataset import Rows, RunData
from pipeline.audit.neighbors import Neighborhood
from pipeline.audit.summary import rarest
from pipeline.models.catalog import Preset
from pipeline.shards.store import Store
from pipeline.shards.writer import encode_png
from pipeline.training.data import LabelledImages

SAMPLES_PATH = "audit/samples.parquet"
RAREST_PATH = "audit/rarest.parquet"
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
        _field("real_balls", pa.int32(), "real images whose k-NN ball holds this one; 0 is outside the real data"),
    ]
)
RAREST_SCHEMA = pa.schema(
    [
        _field("side", pa.string(), "generated or real"),
        _field("class_id", pa.int32(), "class"),
        _field("rank", pa.int32(), "0 is the rarest of its class"),
        _field("key", pa.string(), "sample key; empty for a real image"),
        _field("rarity", pa.float32(), "rarity as in samples.parquet", "feature distance"),
        _field("confidence", pa.float64(), "probability of class_id at t = 0; null for a real image", "1"),
        _field("predicted_id", pa.int32(), "most probable class; null for a real image"),
        _field("png", pa.binary(), "the image"),
    ]
)


def write_samples(store: Store, rows: Rows, preset: Preset, hood: Neighborhood | None) -> None:
    """Write samples.parquet; the last four columns are null where there was no reference."""
    empty: list[None] = [None] * len(rows)
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
        "real_balls": empty if hood is None else hood.balls,
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in SAMPLES_SCHEMA]
    _write(store, SAMPLES_PATH, pa.Table.from_arrays(arrays, schema=SAMPLES_SCHEMA))


def write_rarest(
    store: Store, run: RunData, found: Neighborhood, held_out: LabelledImages, floor: Neighborhood
) -> None:
    """Write rarest.parquet of the (at most 20) classes with the rarest generated images, by class id."""
    generated = rarest(run.measured.class_id, found.rarity, SHOWN_A_CLASS)
    real = rarest(held_out.labels, floor.rarity, SHOWN_A_CLASS)
    classes = sorted(list(generated)[:SHOWN_CLASSES])
    rows = [*_generated_rows(run, found, generated, classes), *_real_rows(held_out, floor, real, classes)]
    _write(store, RAREST_PATH, pa.Table.from_pylist(rows, schema=RAREST_SCHEMA))


def _generated_rows(
    run: RunData, hood: Neighborhood, chosen: dict[int, list[int]], classes: list[int]
) -> Iterator[dict[str, Any]]:
    for class_id in classes:
        for rank, row in enumerate(chosen[class_id]):
            yield _row("generated", class_id, rank, hood.rarity[row], run.images[row]) | {
                "key": str(run.measured.key[row]),
                "confidence": float(run.measured.confidence[row]),
                "predicted_id": int(run.measured.predicted_id[row]),
            }


def _real_rows(
    images: LabelledImages, hood: Neighborhood, chosen: dict[int, list[int]], classes: list[int]
) -> Iterator[dict[str, Any]]:
    for class_id in classes:
        for rank, row in enumerate(chosen.get(class_id, [])):
            yield _row("real", class_id, rank, hood.rarity[row], images.images[row])


def _row(side: str, class_id: int, rank: int, rarity: np.float32, image: NDArray[np.uint8]) -> dict[str, Any]:
    return {
        "side": side,
        "class_id": class_id,
        "rank": rank,
        "key": "",
        "rarity": float(rarity),
        "png": encode_png(image),
    }


def _write(store: Store, rel: str, table: pa.Table) -> None:
    with store.staged(rel) as path:
        pq.write_table(table, path, compression="zstd")
