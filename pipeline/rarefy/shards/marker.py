"""The commit marker. A shard is done when its marker exists and has the digest of the run's manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rarefy.errors import OutputError, ShardError
from rarefy.shards.store import Store


@dataclass(frozen=True)
class Marker:
    """What was committed. seconds: from the first step until the files were written.

    counts: samples by class id (as a string, as in JSON); versions: of the libraries that influence the bytes.
    """

    name: str
    shard: int
    manifest_digest: str
    tar_sha256: str
    tar_md5: str
    tar_bytes: int
    parquet_sha256: str
    parquet_bytes: int
    rows: int
    counts: Mapping[str, int]
    attempt: str
    seconds: float
    images_per_second: float
    versions: Mapping[str, str]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"


def parse_marker(data: bytes, source: str) -> Marker:
    """Parse a marker. Raises ShardError, which names ``source``, if it is damaged."""
    try:
        table = json.loads(data)
    except ValueError as cause:
        raise ShardError(f"{source}: not JSON ({cause})") from cause
    names = {field.name for field in fields(Marker)}
    if not isinstance(table, dict) or set(table) != names:
        raise ShardError(f"{source}: not a commit marker with the fields {sorted(names)}")
    return Marker(**table)


def marker_path(name: str) -> str:
    return f"state/{name}.json"


def read_marker(store: Store, name: str) -> Marker | None:
    """The marker of a shard, or None. Raises ShardError if it is damaged."""
    rel = marker_path(name)
    try:
        return parse_marker(store.read_bytes(rel), rel)
    except OutputError as error:
        # Reading without exists() saves a call, and the marker cannot disappear between the two.
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def read_committed(store: Store, name: str, digest: str) -> Marker | None:
    """The marker of a shard that is committed for the run with this digest; None if there is none or it is damaged."""
    try:
        marker = read_marker(store, name)
    except ShardError:
        return None
    return marker if marker is not None and marker.manifest_digest == digest else None


@dataclass(frozen=True)
class FileHash:
    sha256: str
    md5: str
    size_bytes: int


def hash_file(path: Path) -> FileHash:
    """SHA-256 (for verify), MD5 (for the wids index) and size of a local file, read once."""
    sha256, md5, size_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size_bytes += len(block)
    return FileHash(sha256.hexdigest(), md5.hexdigest(), size_bytes)
