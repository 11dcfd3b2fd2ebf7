"""The files that describe a sealed data set: ``index.json``, ``metadata.json`` and ``_SUCCESS``.

They are written, and compared with what is there, one shard at a time: a run may have a million shards.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import BinaryIO, Protocol

from rarefy.errors import StorageError
from rarefy.shards.marker import Marker
from rarefy.shards.metadata import SCHEMA, parquet_path, tar_path
from rarefy.shards.reader import json_object
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store

SUCCESS = "_SUCCESS"
INDEX = "index.json"
LISTING = "metadata.json"
# Where earlier versions wrote the listing. polars refuses to read a folder of Parquet files that has any other file.
FORMER_LISTING = "metadata/_index.json"
COLUMNS_BYTES = 1 << 16  # the columns in the listing take about 4 kB
AFTER_COLUMNS = ',\n "total": '


class Sink(Protocol):
    """Where bytes are written to, such as a file."""

    def write(self, data: bytes, /) -> object: ...


class Comparison:
    """A sink that compares what is written to it with an open file. same: whether all of it was equal so far.

    of_listing: skip the columns, which differ between versions of rarefy.
    """

    def __init__(self, stream: BinaryIO, of_listing: bool = False) -> None:
        self.stream, self.same, self._skip = stream, True, of_listing
        if of_listing:
            columns, separator, _ = stream.read(COLUMNS_BYTES).partition(AFTER_COLUMNS.encode())
            self.same = bool(separator) and is_object(columns + b"}")
            stream.seek(len(columns))

    def write(self, data: bytes, /) -> None:
        if self._skip:
            self._skip = False
        else:
            self.same = self.same and self.stream.read(len(data)) == data

    def at_end(self) -> bool:
        """Whether everything was equal and the file has nothing more."""
        return self.same and not self.stream.read(1)


class DataSetFiles:
    """Writes the index for readers by wids and the listing of the metadata. index, listing: where to."""

    def __init__(self, run: RunSpec, index: Sink, listing: Sink) -> None:
        self.index, self.listing = _JsonList(index), _JsonList(listing)
        self.index.begin({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": run.name}, "shardlist")
        counts = {str(class_id): n for class_id, n in sorted(run.counts.items())}
        self.listing.begin({"columns": _columns(), "total": sum(run.counts.values()), "counts": counts}, "shards")

    def add(self, marker: Marker) -> None:
        """Write one shard. Shards are given in the plan's order."""
        name = marker.name
        self.index.add(
            {
                "url": tar_path(name),
                "md5sum": marker.tar_md5,
                "nsamples": marker.rows,
                "filesize": marker.tar_bytes,
            }
        )
        self.listing.add(
            {
                "name": name,
                "parquet": parquet_path(name),
                "tar": tar_path(name),
                "rows": marker.rows,
                "counts": marker.counts,
            }
        )

    def end(self) -> None:
        self.index.end()
        self.listing.end()


class _JsonList:
    """Writes a JSON object whose last value is a list, with the bytes of ``json.dumps(..., indent=1)``."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.separator = sink, "\n"

    def begin(self, head: Mapping[str, object], name: str) -> None:
        text = json.dumps({**head, name: []}, indent=1)
        before, separator, after = text.removesuffix("]\n}").partition(AFTER_COLUMNS)
        self.sink.write(before.encode())
        self.sink.write((separator + after).encode())

    def add(self, item: Mapping[str, object]) -> None:
        self.sink.write((self.separator + textwrap.indent(json.dumps(item, indent=1), "  ")).encode())
        self.separator = ",\n"

    def end(self) -> None:
        self.sink.write(b"\n ]\n}\n")


def is_sealed(store: Store) -> bool:
    """Whether ``seal`` has completed."""
    return store.exists(SUCCESS)


def listing_path(store: Store) -> str:
    """Where a sealed data set has its listing; that of an earlier version has it in its former place."""
    return FORMER_LISTING if not store.exists(LISTING) and store.exists(FORMER_LISTING) else LISTING


def success_table(run: RunSpec) -> dict[str, object]:
    """The content of ``_SUCCESS``."""
    return {"manifest_digest": run.digest, "shards": len(run.shards), "samples": sum(run.counts.values())}


def check_success(store: Store, run: RunSpec) -> str:
    """What is wrong with ``_SUCCESS``; empty if nothing is. Raises StorageError, which says nothing about it."""
    try:
        same = json_object(store.read_bytes(SUCCESS)) == success_table(run)
    except StorageError:
        raise
    except ValueError as error:  # an OutputError is one
        return f"cannot be read ({error})"
    return "" if same else "is not the one of this run"


def is_object(data: bytes) -> bool:
    """Whether the bytes are a JSON object."""
    try:
        json_object(data)
    except ValueError:
        return False
    return True


def _columns() -> list[dict[str, str]]:
    return [{"name": field.name, "type": str(field.type), **_text(field.metadata)} for field in SCHEMA]


def _text(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in metadata.items()}
