"""OUT/rarity/<shard>.parquet: the rarity of every image of a shard. It joins the shard's metadata by key.

A file is created whole or not at all. Its metadata say what the values depend on (``Basis``), so that a file of an
earlier shard, of other real images or of another extractor is never taken for a current one. Its pages have checksums,
so that a damaged file is not taken for one either.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rarefy.errors import ShardError
from rarefy.shards.check import sha256_of
from rarefy.shards.metadata import column
from rarefy.shards.store import Store

FOLDER = "rarity"
BASIS_KEY = b"rarefy.rarity"
TRIES = 3  # to put a file in place of one of another basis


@dataclass(frozen=True)
class Measure:
    """How rarity was measured: the extractor, its layer, weights and preprocessing, k, and the real images' hash."""

    extractor: str
    layer: str
    extractor_sha256: str
    preprocessing: str
    k: int
    reference_sha256: str


@dataclass(frozen=True)
class Basis:
    """Everything that the values of a file depend on. tar_sha256: of the shard."""

    measure: Measure
    tar_sha256: str

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()


@dataclass(frozen=True)
class Part:
    """A file that was read. sha256: of its bytes; basis: JSON."""

    table: pa.Table
    basis: bytes
    sha256: str


@dataclass(frozen=True)
class RarityColumns:
    """The columns of N images; SCHEMA has their meaning and units."""

    key: list[str]
    class_id: NDArray[np.int64]
    rarity: NDArray[np.float32]
    inside: NDArray[np.bool_]
    avgknn: NDArray[np.float32]
    nearest_distance: NDArray[np.float32]
    nearest_real: list[str]


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> pa.Field:
    return column(name, kind, meaning, unit, nullable=False)


SCHEMA = pa.schema(
    [
        _field("key", pa.string(), "sample key in the shards"),
        _field("class_id", pa.int32(), "class asked for"),
        _field(
            "rarity",
            pa.float32(),
            "smallest k-NN radius of a real image whose ball contains this one; outside, the distance to the nearest",
            "feature distance",
        ),
        _field("inside", pa.bool_(), "whether some real image's k-NN ball contains this one"),
        _field("avgknn", pa.float32(), "mean distance to the k nearest real images", "feature distance"),
        _field("nearest_distance", pa.float32(), "distance to the nearest real image", "feature distance"),
        _field("nearest_real", pa.string(), "key of the nearest real image"),
    ]
)


def rarity_path(name: str) -> str:
    return f"{FOLDER}/{name}.parquet"


def encode_part(columns: RarityColumns, basis: Basis) -> bytes:
    """The file's bytes. Equal columns give equal bytes (with the same pyarrow)."""
    arrays = [pa.array(getattr(columns, field.name), type=field.type) for field in SCHEMA]
    schema = SCHEMA.with_metadata({BASIS_KEY: basis.to_json()})
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), stream, compression="zstd", write_page_checksum=True)
    return stream.getvalue()


def place_part(store: Store, name: str, data: bytes, basis: Basis) -> None:
    """Create the file, unless another driver has created one of the same basis. Another or a damaged one is replaced.

    The values of the first file stay: machines may round differently, and a choice made by them must not change.
    Raises ShardError if others keep putting files of another basis there.
    """
    for _ in range(TRIES):
        if store.create(rarity_path(name), data):
            return
        found = store.read_or_none(rarity_path(name))
        if found is not None and has_basis(found, basis):
            return
        if found is not None:
            store.withdraw(rarity_path(name), sha256_of(found))
    raise ShardError(f"{rarity_path(name)}: another audit writes it with other settings; run one at a time")


def read_part(store: Store, name: str) -> Part:
    """Read a file. Raises ShardError if it is missing or damaged."""
    data = store.read_or_none(rarity_path(name))
    if data is None:
        raise ShardError(f"{rarity_path(name)}: missing")
    try:
        return Part(*_parse(data), sha256_of(data))
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as cause:
        message = f"{rarity_path(name)}: not a readable table of rarity ({' '.join(str(cause).split())})"
        raise ShardError(message) from cause


def has_basis(data: bytes, basis: Basis) -> bool:
    """Whether the content of a file is whole and has this basis."""
    try:
        return _parse(data)[1] == basis.to_json()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return False


def _parse(data: bytes) -> tuple[pa.Table, bytes]:
    """The table and its basis. Raises what pyarrow raises for damaged files, and ValueError for other columns."""
    table = pq.read_table(io.BytesIO(data), partitioning=None, use_threads=False, page_checksum_verification=True)
    table.validate(full=True)
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"its columns are not {', '.join(SCHEMA.names)}")
    return table, bytes((table.schema.metadata or {}).get(BASIS_KEY, b""))
