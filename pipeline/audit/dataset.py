"""What the audit reads of a run: every row of metadata, and the images of an even sample of its shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ShardError
from pipeline.manifest import Manifest, parse_manifest
from pipeline.plan import shard_names
from pipeline.shards.index import committed, is_sealed
from pipeline.shards.metadata import parquet_path, read_table
from pipeline.shards.reader import read_samples
from pipeline.shards.store import Store

COLUMNS = ("key", "class_id", "predicted_id", "confidence", "entropy", "accepted")
WEIGHTS = ("checkpoint_sha256", "classifier_sha256")


@dataclass(frozen=True)
class Rows:
    """Columns of N samples, in the run's order: confidence p(class) in [0, 1], entropy in nats."""

    key: NDArray[np.str_]
    class_id: NDArray[np.int64]
    predicted_id: NDArray[np.int64]
    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    accepted: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True)
class RunData:
    """rows: all committed samples; measured: those whose images (N, C, H, W) uint8 are compared with real ones.

    weights: sha256 of the diffusion model's and the classifier's; complete: the data set is sealed.
    """

    manifest: Manifest
    rows: Rows
    measured: Rows
    images: NDArray[np.uint8]
    weights: tuple[str, str]
    complete: bool


def read_manifest(store: Store) -> Manifest:
    """The run's own manifest. Raises OutputError where there is no run."""
    text = store.read_bytes("manifest.toml").decode()
    return parse_manifest(text, f"{store.root}/manifest.toml")


def read_run(store: Store, limit: int) -> RunData:
    """Read a run's rows and the images of at most ``limit`` samples. Raises ShardError where nothing is committed.

    A shard holds the classes in proportion, so shards at even distances stand for the whole.
    """
    manifest = read_manifest(store)
    names = committed(store, shard_names(manifest), manifest.digest)
    tables = {name: _read_rows(store, name) for name in names}
    if not tables:
        raise ShardError(f"{store.root}: no committed shard of its manifest, generate first")
    rows = _rows(pa.concat_tables(tables.values()))
    chosen = _spread(list(tables), [table.num_rows for table in tables.values()], limit)
    measured = _rows(pa.concat_tables(tables[name] for name in chosen))
    images = np.concatenate([_read_images(store, name, tables[name]) for name in chosen])
    cut = slice(0, limit)
    kept = Rows(*(getattr(measured, column)[cut] for column in COLUMNS))
    first = tables[chosen[0]]
    weights = (str(first[WEIGHTS[0]][0]), str(first[WEIGHTS[1]][0]))
    return RunData(manifest, rows, kept, images[cut], weights, is_sealed(store))


def _spread(names: list[str], counts: list[int], limit: int) -> list[str]:
    """Shards at even distances with at least ``limit`` rows in all, or every shard."""
    if sum(counts) <= limit:
        return names
    wanted = min(len(names), -(-limit // max(1, min(counts))))
    return [names[place] for place in np.unique(np.linspace(0, len(names) - 1, wanted).round().astype(int))]


def _read_rows(store: Store, name: str) -> pa.Table:
    with store.local_copy(parquet_path(name)) as path:
        return read_table(path).select([*COLUMNS, *WEIGHTS])


def _read_images(store: Store, name: str, table: pa.Table) -> NDArray[np.uint8]:
    keys, images = [], []
    for sample in read_samples(store, name):
        keys.append(sample.key)
        images.append(sample.image)
    if keys != table["key"].to_pylist():
        raise ShardError(f"{name}: tar and Parquet hold other keys; run verify")
    return np.stack(images)


def _rows(table: pa.Table) -> Rows:
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    return Rows(
        key=columns["key"].astype(str),
        class_id=columns["class_id"].astype(np.int64),
        predicted_id=columns["predicted_id"].astype(np.int64),
        confidence=columns["confidence"].astype(np.float64),
        entropy=columns["entropy"].astype(np.float64),
        accepted=columns["accepted"].astype(np.bool_),
    )
