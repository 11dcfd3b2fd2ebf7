"""The Parquet metadata, one row per sample: schema, writing and reading."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.json import ParseOptions, read_json

from rarefy.errors import ShardError
from rarefy.shards.store import Store

MANIFEST_KEY = b"rarefy.manifest"
DIGEST_KEY = b"rarefy.manifest_digest"
# Only earlier versions wrote this column. It made the files of two attempts differ.
FORMER_COLUMN = "created_at"
SCORES = ("predicted_id", "confidence", "entropy", "entropy_normalized", "margin")
MAX_ROWS = 100_000  # of a shard
OF_CLASSIFIER = (*SCORES, "classifier_sha256")


@dataclass(frozen=True)
class SampleRecord:
    """One generated image; SCHEMA has the units. The fields are flat, so ``vars`` gives the row, faster than asdict.

    Without a classifier, all fields of OF_CLASSIFIER are None.
    """

    key: str
    shard: int
    index: int
    class_id: int
    class_name: str
    predicted_id: int | None
    confidence: float | None
    entropy: float | None
    entropy_normalized: float | None
    margin: float | None
    seed: int
    candidate: int
    guidance: str
    steps: int
    checkpoint_sha256: str
    classifier_sha256: str | None
    manifest_digest: str
    image_sha256: str
    width: int
    height: int
    accepted: bool

    def stable_json(self) -> bytes:
        """The row as canonical JSON: the ``.json`` file in the tar. It depends only on the image."""
        return json.dumps(vars(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def column(name: str, kind: pa.DataType, meaning: str, unit: str = "", nullable: bool = True) -> pa.Field:
    """A column of a Parquet file, which says itself what it means."""
    metadata = {"description": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return column(name, kind, meaning, unit, name in OF_CLASSIFIER)


SCHEMA = pa.schema(
    [
        _field("key", pa.string(), "sample key in the tar: six digits of shard, five of index"),
        _field("shard", pa.int32(), "shard number"),
        _field("index", pa.int32(), "place in the shard"),
        _field("class_id", pa.int32(), "class asked for"),
        _field("class_name", pa.string(), "its name"),
        _field("predicted_id", pa.int32(), "class with the highest probability at t = 0; null without a classifier"),
        _field("confidence", pa.float64(), "probability of class_id at t = 0", "1"),
        _field("entropy", pa.float64(), "entropy of the class probabilities at t = 0", "nat"),
        _field("entropy_normalized", pa.float64(), "entropy / log(number of classes)", "1"),
        _field("margin", pa.float64(), "highest less second highest probability", "1"),
        _field("seed", pa.int64(), "seed of the image's generator"),
        _field("candidate", pa.int32(), "which draw of the slot was kept, from 0"),
        _field("guidance", pa.string(), "guidance terms joined by +, empty for none"),
        _field("steps", pa.int32(), "denoising steps", "step"),
        _field("checkpoint_sha256", pa.string(), "hash of the diffusion weights"),
        _field("classifier_sha256", pa.string(), "hash of the classifier weights; null without one"),
        _field("manifest_digest", pa.string(), "digest of the manifest"),
        _field("image_sha256", pa.string(), "hash of the PNG file"),
        _field("width", pa.int32(), "image width", "px"),
        _field("height", pa.int32(), "image height", "px"),
        _field("accepted", pa.bool_(), "false where no candidate passed the filter and the last one was kept"),
    ]
)


def sample_key(shard: int, index: int) -> str:
    """The sample's key. It has no dots, because WebDataset cuts a key at the first dot."""
    return f"{shard:06d}{index:05d}"


def tar_path(name: str) -> str:
    return f"shards/{name}.tar"


def parquet_path(name: str) -> str:
    return f"metadata/{name}.parquet"


def check_record(record: SampleRecord) -> None:
    """Raise ShardError if the key is wrong, or a score is not finite or missing although there is a classifier."""
    if record.key != (expected := sample_key(record.shard, record.index)):
        raise ShardError(f"key: {record.key!r} of shard {record.shard} index {record.index} is not {expected!r}")
    unscored = all(getattr(record, name) is None for name in OF_CLASSIFIER)
    for name in () if unscored else SCORES:
        value = getattr(record, name)
        if value is None or not math.isfinite(value):
            raise ShardError(f"sample {record.key}: {name} {value!r} is not a finite number")


def write_table(
    target: Path | BinaryIO, records: Sequence[SampleRecord], manifest_text: str, manifest_digest: str
) -> None:
    """Write the rows in the given order. The manifest and its digest go into the file's key-value metadata.

    Equal rows and texts give equal bytes (with the same pyarrow).
    """
    schema = SCHEMA.with_metadata({MANIFEST_KEY: manifest_text.encode(), DIGEST_KEY: manifest_digest.encode()})
    # Via JSON, because pyarrow imports pandas to convert Python objects: 0.3 s and 40 MB in each actor.
    lines = "\n".join(json.dumps(vars(record)) for record in records)
    table = read_json(io.BytesIO(lines.encode()), parse_options=ParseOptions(explicit_schema=SCHEMA))
    pq.write_table(table.cast(schema), target, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read one file, of this version or an earlier one.

    Raises ShardError if it is missing or damaged or has other columns.
    """
    return parse_table(path, path.name)


def parse_table(source: Path | BinaryIO, name: str) -> pa.Table:
    """Like read_table, also for a file in memory. name: what errors call it."""
    try:
        with pq.ParquetFile(source) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{file.metadata.num_rows:,} rows, more than the {MAX_ROWS:,} of a shard")
            table = file.read(use_threads=False)  # threads are slower for tables as small as these
        table.validate(full=True)
        columns = [(field.name, field.type) for field in table.schema if field.name != FORMER_COLUMN]
    # pyarrow raises ValueError for text that is not UTF-8, and TypeError or KeyError for some damaged footers.
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as cause:
        raise ShardError(f"{name}: not a readable Parquet file ({' '.join(str(cause).split())})") from cause
    if table.schema.equals(SCHEMA):
        return table
    # Files of earlier versions differ in which columns may be null.
    if columns != [(field.name, field.type) for field in SCHEMA]:
        raise ShardError(f"{name}: columns {table.schema.names} are not those of the schema, {SCHEMA.names}")
    return table.select(SCHEMA.names).cast(SCHEMA.with_metadata(table.schema.metadata))


def read_records(store: Store, name: str) -> list[SampleRecord]:
    """The rows of one shard, in tar order. Raises ShardError if they are missing or damaged."""
    if not store.exists(parquet_path(name)):
        raise ShardError(f"{name}: {parquet_path(name)} is missing")
    with store.local_copy(parquet_path(name)) as path:
        return to_records(read_table(path))


def to_records(table: pa.Table) -> list[SampleRecord]:
    return [SampleRecord(**row) for row in table.to_pylist()]
