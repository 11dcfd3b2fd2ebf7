"""The Parquet files of the audit: measured images, suspected copies, and resamples. See also strips.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rarefy.audit.inputs.dataset import Rows
from rarefy.audit.schema import BOOTSTRAP_PATH, COPIES_PATH, SAMPLES_PATH
from rarefy.errors import ShardError
from rarefy.models.folder import ModelFolder
from rarefy.shards.metadata import column
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png

if TYPE_CHECKING:  # the page reads these tables without torch
    from rarefy.audit.measure import Measured
    from rarefy.audit.metrics.bootstrap import Estimate


SAMPLES_SCHEMA = pa.schema(
    [
        column("key", pa.string(), "sample key in the shards"),
        column("class_id", pa.int32(), "requested class"),
        column("class_name", pa.string(), "its name"),
        column("predicted_id", pa.int32(), "class with the highest probability at t = 0; null without a classifier"),
        column("confidence", pa.float64(), "probability of class_id at t = 0", "1"),
        column("entropy", pa.float64(), "entropy of the class probabilities at t = 0", "nat"),
        column(
            "rarity",
            pa.float32(),
            "smallest k-NN radius of a real image whose ball contains this one; outside, the distance to the nearest",
            "feature distance",
        ),
        column("nearest_distance", pa.float32(), "distance to the nearest real image", "feature distance"),
        column("knn_distance", pa.float32(), "mean distance to the k nearest real images", "feature distance"),
        column("nearest_real", pa.string(), "key of the nearest real image"),
        column(
            "copy_ratio",
            pa.float64(),
            "distance to the most similar searched image, over the largest that counts as a copy",
            "1",
        ),
        column("real_balls", pa.int32(), "real images whose k-NN ball contains this one; 0 is outside the real data"),
    ]
)
COPIES_SCHEMA = pa.schema(
    [
        column("key", pa.string(), "sample key"),
        column("other", pa.string(), "key of the real image or of the twin"),
        column("kind", pa.string(), "training, reference, held-out, exact or near"),
        column("distance", pa.float64(), "difference after the best flip, shift and brightness", "grey level"),
        column("ratio", pa.float64(), "distance over the largest that counts as a copy", "1"),
        column("png", pa.binary(), "the image"),
        column("other_png", pa.binary(), "the other image"),
    ]
)
BOOTSTRAP_SCHEMA = pa.schema(
    [
        column("metric", pa.string(), "name as in metrics.json"),
        column("replicate", pa.int32(), "index of the resample"),
        column("value", pa.float64(), "the metric in this resample"),
    ]
)


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
        from rarefy.audit.rarity.compute import finite_rarity

        neighborhood = measured.of_run.neighborhood
        columns |= {
            "rarity": finite_rarity(neighborhood),
            "nearest_distance": neighborhood.nearest,
            "knn_distance": neighborhood.mean_distance,
            "nearest_real": [measured.real_images.keys[place] for place in neighborhood.nearest_index],
            "copy_ratio": measured.twins.ratio,
            "real_balls": neighborhood.balls,
        }
    empty: list[None] = [None] * len(rows)
    arrays = [pa.array(columns.get(field.name, empty), type=field.type) for field in SAMPLES_SCHEMA]
    _write(store, SAMPLES_PATH, pa.Table.from_arrays(arrays, schema=SAMPLES_SCHEMA))


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


def read_copies(store: Store) -> list[CopyImages]:
    """The rows of copies.parquet, none if there is no such file. Raises ShardError if it cannot be read."""
    return [CopyImages(**row) for row in read_rows(store, COPIES_PATH)] if store.exists(COPIES_PATH) else []


def read_replicates(store: Store) -> dict[str, dict[int, float]]:
    """{metric: {resample: finite value}}. Raises OutputError or ShardError if the file cannot be read."""
    replicates: dict[str, dict[int, float]] = {}
    for row in read_rows(store, BOOTSTRAP_PATH):
        if row["value"] is not None and np.isfinite(row["value"]):
            replicates.setdefault(row["metric"], {})[row["replicate"]] = row["value"]
    return replicates


def read_rows(store: Store, rel: str) -> list[dict[str, Any]]:
    """The rows of one of the audit's Parquet files. Raises ShardError if it cannot be read."""
    try:
        with store.local_copy(rel) as path:
            rows: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{store.root}/{rel}: not a readable Parquet file; run audit again") from error
    return rows


def _write(store: Store, rel: str, table: pa.Table) -> None:
    with store.staged(rel) as path:
        pq.write_table(table, path, compression="zstd")
