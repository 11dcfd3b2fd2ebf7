"""Compares what a committed shard contains with the plan: rows with planned rows, samples with rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa

from rarefy.errors import ShardError
from rarefy.shards.metadata import DIGEST_KEY, SampleRecord, check_record
from rarefy.shards.reader import json_object, tar_samples
from rarefy.shards.spec import RowSpec, ShardSpec

CLS_SHOWN = 20  # bytes


def check_rows(table: pa.Table, records: Sequence[SampleRecord], spec: ShardSpec, digest: str) -> list[str]:
    """Problems of the rows, which have the plan's keys, classes and seeds in the plan's order."""
    problems = []
    written = (table.schema.metadata or {}).get(DIGEST_KEY, b"").decode(errors="replace")
    if written != digest:
        problems.append(f"Parquet is for manifest {written!r}, its marker says {digest!r}")
    if len(records) != len(spec.rows):
        return [*problems, f"Parquet has {len(records)} rows, the plan says {len(spec.rows)}"]
    if len({(record.checkpoint_sha256, record.classifier_sha256) for record in records}) > 1:
        problems.append("its images were made with several weights")
    for record, row in zip(records, spec.rows, strict=True):
        problems += _compare_row(record, row, spec.number, digest)
    return problems


def _compare_row(record: SampleRecord, row: RowSpec, number: int, digest: str) -> list[str]:
    if record.candidate < 0:
        return [f"sample {row.key}: candidate is {record.candidate}, which is not 0 or more"]
    try:
        check_record(record)
    except ShardError as error:
        return [str(error)]
    planned = {
        "key": row.key,
        "shard": number if row.shard is None else row.shard,
        "index": row.index,
        "class_id": row.class_id,
        "seed": row.seed(record.candidate),
        "manifest_digest": digest,
        "image_sha256": row.image_sha256 or record.image_sha256,
    }
    return [
        f"sample {row.key}: {field} is {getattr(record, field)!r}, the plan says {value!r}"
        for field, value in planned.items()
        if getattr(record, field) != value
    ]


def check_samples(tar: BinaryIO, records: Sequence[SampleRecord], name: str) -> list[str]:
    """Problems of the tar, whose samples have the images, classes and rows that the Parquet file says."""
    problems, rows = [], {record.key: record for record in records}
    try:
        for key, fields in tar_samples(tar, name):
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
        problems.append(f"its .cls is {fields['cls'][:CLS_SHOWN]!r}, its row says class {record.class_id}")
    if fields["json"] != (expected := record.stable_json()):
        problems.append(f"its .json and its row differ in {_differing(fields['json'], expected)}")
    return problems


def _differing(actual: bytes, expected: bytes) -> str:
    try:
        in_tar = json_object(actual)
    except ValueError as cause:
        return f"format (the .json cannot be parsed: {cause})"
    row = json_object(expected)
    return ", ".join(name for name in sorted(set(row) | set(in_tar)) if row.get(name) != in_tar.get(name)) or "format"
