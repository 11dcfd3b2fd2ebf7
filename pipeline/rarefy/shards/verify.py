"""Checks committed shards against their markers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from rarefy.errors import ShardError
from rarefy.shards.marker import FileHash, Marker, hash_file, read_marker
from rarefy.shards.metadata import DIGEST_KEY, SampleRecord, parquet_path, read_table, tar_path, to_records
from rarefy.shards.reader import iter_tar
from rarefy.shards.store import Store

NOT_COMMITTED = "not committed (no marker)"
THREADS = 4  # for object stores, where most time is spent waiting
BATCH = 256


def verify(store: Store, names: Sequence[str], digest: str) -> dict[str, list[str]]:
    """Problems by shard name, in the order of ``names``; empty if every shard is intact."""
    problems: dict[str, list[str]] = {}
    # Local files: the work holds Python's global lock, so four threads took up to twice as long as one.
    with ThreadPoolExecutor(1 if store.is_local else THREADS) as pool:
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            results = pool.map(lambda name: verify_shard(store, name, digest), batch)
            problems |= {name: lines for name, lines in zip(batch, results, strict=True) if lines}
    return problems


def verify_shard(store: Store, name: str, digest: str) -> list[str]:
    """Compare the tar, the Parquet file and the marker with each other. Returns one line per problem.

    Raises OutputError if the store cannot be read at the moment, which says nothing about the shard.
    """
    try:
        marker = read_marker(store, name)
    except ShardError as error:
        return [str(error)]
    if marker is None:
        return [NOT_COMMITTED]
    if marker.manifest_digest != digest:
        return [f"its marker is for manifest {marker.manifest_digest}, not {digest}"]
    if missing := [rel for rel in (tar_path(name), parquet_path(name)) if not store.exists(rel)]:
        return [f"{rel} is missing" for rel in missing]
    with store.local_copy(tar_path(name)) as tar, store.local_copy(parquet_path(name)) as parquet:
        return _check_files(tar, parquet, marker)


def _check_files(tar: Path, parquet: Path, marker: Marker) -> list[str]:
    problems = _compare_hash("tar", hash_file(tar), FileHash(marker.tar_sha256, marker.tar_md5, marker.tar_bytes))
    actual = hash_file(parquet)
    problems += _compare_hash("Parquet", actual, FileHash(marker.parquet_sha256, actual.md5, marker.parquet_bytes))
    try:
        table = read_table(parquet)
    except ShardError as error:
        return [*problems, str(error)]
    return problems + _check_rows(table, marker) + _check_samples(tar, to_records(table), marker.name)


def _compare_hash(what: str, actual: FileHash, expected: FileHash) -> list[str]:
    if actual == expected:
        return []
    if actual.size_bytes != expected.size_bytes:
        return [f"{what} has {actual.size_bytes} bytes, its marker says {expected.size_bytes}"]
    return [f"{what} has sha256 {actual.sha256}, its marker says {expected.sha256}"]


def _check_rows(table: pa.Table, marker: Marker) -> list[str]:
    problems = []
    if table.num_rows != marker.rows:
        problems.append(f"Parquet has {table.num_rows} rows, its marker says {marker.rows}")
    counts = Counter(str(class_id) for class_id in table.column("class_id").to_pylist())
    if counts != Counter(marker.counts):
        problems.append(f"Parquet has the class counts {dict(counts)}, its marker says {dict(marker.counts)}")
    written = (table.schema.metadata or {}).get(DIGEST_KEY, b"").decode()
    if written != marker.manifest_digest:
        problems.append(f"Parquet is for manifest {written!r}, its marker says {marker.manifest_digest!r}")
    return problems


def _check_samples(tar: Path, records: Sequence[SampleRecord], name: str) -> list[str]:
    problems, rows = [], {record.key: record for record in records}
    try:
        for key, fields in iter_tar(tar, name):
            record = rows.pop(key, None)
            if record is None:
                problems.append(f"sample {key} is in the tar but has no row (or is there twice)")
            else:
                problems += [f"sample {key}: {problem}" for problem in _compare_sample(fields, record)]
    except ShardError as error:
        return [*problems, str(error)]
    return problems + [f"sample {key} has a row but is not in the tar" for key in rows]


def _compare_sample(fields: dict[str, bytes], record: SampleRecord) -> list[str]:
    problems = []
    if hashlib.sha256(fields["png"]).hexdigest() != record.image_sha256:
        problems.append("its image does not have the sha256 that its row says")
    if fields["cls"] != str(record.class_id).encode():
        problems.append(f"its .cls is {fields['cls']!r}, its row says class {record.class_id}")
    if fields["json"] != (expected := record.stable_json()):
        problems.append(f"its .json and its row differ in {_differing(fields['json'], expected)}")
    return problems


def _differing(actual: bytes, expected: bytes) -> str:
    try:
        in_tar = json.loads(actual)
    except ValueError:
        return "format (the .json cannot be parsed)"
    row = json.loads(expected)
    if not isinstance(in_tar, dict):
        return "format (the .json is not an object)"
    return ", ".join(name for name in sorted(set(row) | set(in_tar)) if row.get(name) != in_tar.get(name)) or "format"
