"""The commit marker. A shard is done when its marker exists and has the digest of the run's manifest."""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rarefy.errors import ShardError
from rarefy.shards.store import Store

STATE = "state"
SHA256, MD5 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")
DIGITS, FILE_NAME, TEXT = re.compile(r"[0-9]+"), re.compile(r"[^/]+"), re.compile(r".+")
NUMBERS = 2**63
# In the JSON only: the hash of everything else, so that a damaged marker is never mistaken for a whole one.
CHECKSUM = "checksum"


@dataclass(frozen=True)
class Marker:
    """What was committed. seconds: from the first step until the files were written.

    counts: samples by class id (as a string, as in JSON); versions: of the libraries that influence the bytes;
    created_at: time of the commit in UTC (ISO 8601), None in a marker of an earlier version.
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
    created_at: str | None = None

    def to_json(self) -> bytes:
        table = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(table | {CHECKSUM: _checksum(table)}, indent=1, sort_keys=True).encode() + b"\n"


def parse_marker(data: bytes, source: str) -> Marker:
    """Parse a marker. Raises ShardError, which names ``source`` and the first wrong field, if it is damaged."""
    try:
        table = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        raise ShardError(f"{source}: not JSON ({' '.join(str(cause).split())})") from cause
    names = {field.name for field in fields(Marker)}
    required = {field.name for field in fields(Marker) if field.default is MISSING}
    if not isinstance(table, dict) or not required <= set(table) <= names | {CHECKSUM}:
        raise ShardError(f"{source}: not a commit marker with the fields {sorted(names)}")
    checksum = table.pop(CHECKSUM, None)
    if wrong := [name for name, value in table.items() if not _valid(name, value)]:
        raise ShardError(f"{source}: not a commit marker: {wrong[0]} is {reprlib.repr(table[wrong[0]])}")
    # Markers of earlier versions have neither checksum nor time.
    if checksum != _checksum(table) and not (checksum is None and "created_at" not in table):
        raise ShardError(f"{source}: not a commit marker: it does not have the checksum that it names")
    marker = Marker(**table)
    if sum(marker.counts.values()) != marker.rows or not marker.name.endswith(f"-{marker.shard:06d}"):
        raise ShardError(f"{source}: not a commit marker: its counts and rows, or its name and shard, disagree")
    return marker


def marker_path(name: str) -> str:
    return f"{STATE}/{name}.json"


def read_marker(store: Store, name: str) -> Marker | None:
    """The marker of a shard, or None. One request. Raises ShardError if it is damaged."""
    data = store.read_or_none(marker_path(name))
    return None if data is None else parse_marker(data, marker_path(name))


def read_committed(store: Store, name: str, digest: str) -> Marker | None:
    """The marker of a shard if it is whole and of this shard and manifest, otherwise None. One request.

    Raises StorageError if the store cannot be read at the moment, which says nothing about the shard.
    """
    data = store.read_or_none(marker_path(name))
    return None if data is None else parse_committed(data, name, digest)


def parse_committed(data: bytes, name: str, digest: str) -> Marker | None:
    """A marker that is whole and of this shard and manifest; otherwise None."""
    try:
        marker = parse_marker(data, name)
    except ShardError:
        return None
    return marker if (marker.name, marker.manifest_digest) == (name, digest) else None


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


def hash_bytes(data: bytes) -> FileHash:
    """Like hash_file, of a file's content."""
    return FileHash(hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data))


def _checksum(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _valid(name: str, value: object) -> bool:
    """Whether a field has the type and the range that commit_shard writes."""
    match name:
        case "shard" | "tar_bytes" | "parquet_bytes" | "rows":
            return _is_count(value)
        case "seconds" | "images_per_second":
            return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]  # a number
        case "counts":
            return isinstance(value, dict) and all(DIGITS.fullmatch(key) and _is_count(n) for key, n in value.items())
        case "versions":
            return isinstance(value, dict) and all(isinstance(version, str) for version in value.values())
        case "created_at":
            return isinstance(value, str) and _is_time(value)
    if not isinstance(value, str):
        return False
    pattern = {"tar_md5": MD5, "name": FILE_NAME, "attempt": TEXT}.get(name, SHA256)
    return pattern.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < NUMBERS


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
