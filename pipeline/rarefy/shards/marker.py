"""The commit marker: a shard is done when its marker is there and names the run's manifest."""

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
    """What was committed. Sizes in bytes, ``seconds`` from the first step to the files written.

    ``counts``: samples by class id (as text, the form JSON keeps). ``versions``: libraries that shaped the bytes.
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
    """Read a marker back; ShardError naming ``source`` where it is damaged."""
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
    """The marker of a shard, None where there is none; ShardError where it is damaged."""
    rel = marker_path(name)
    try:
        return parse_marker(store.read_bytes(rel), rel)
    except OutputError as error:
        # One call for the usual case; a marker may also go between a look and a read.
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


@dataclass(frozen=True)
class FileHash:
    sha256: str
    md5: str
    size_bytes: int


def hash_file(path: Path) -> FileHash:
    """SHA-256 (ours), MD5 (what a wids index asks for) and size of a local file, read once."""
    sha256, md5, size_bytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size_bytes += len(block)
    return FileHash(sha256.hexdigest(), md5.hexdigest(), size_bytes)
