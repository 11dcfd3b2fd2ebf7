"""Commits a shard: tar and Parquet file are written under private names and renamed; the marker comes last."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image, features

from rarefy.errors import ShardError
from rarefy.shards.marker import FileHash, Marker, hash_file, marker_path, read_marker
from rarefy.shards.metadata import SampleRecord, check_record, parquet_path, tar_path, write_table
from rarefy.shards.store import Store

PNG_LEVEL = 6
TAR_OWNER = "rarefy"


@dataclass(frozen=True)
class Sample:
    """One image as a PNG file, and its row."""

    record: SampleRecord
    png: bytes


@dataclass(frozen=True)
class ShardHeader:
    """Which shard of which run. attempt: a unique text per attempt, recorded in the marker."""

    name: str
    shard: int
    manifest_text: str
    manifest_digest: str
    attempt: str


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG file of a (C, H, W) uint8 image, C 1 or 3. Equal pixels give equal bytes (with the same Pillow and zlib)."""
    pixels = image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def write_tar(path: Path, samples: Sequence[Sample]) -> None:
    """WebDataset tar in the given order. Its bytes depend only on the samples' images and stable fields."""
    options = {"user": TAR_OWNER, "group": TAR_OWNER, "mtime": 0, "encoder": False}
    with path.open("wb") as stream, webdataset.TarWriter(stream, **options) as tar:
        for sample in samples:
            record = sample.record
            fields = {"png": sample.png, "cls": str(record.class_id).encode(), "json": record.stable_json()}
            tar.write({"__key__": record.key, **fields})


def commit_shard(store: Store, header: ShardHeader, samples: Sequence[Sample], seconds: float) -> Marker:
    """Write one shard completely or not at all. The first attempt to commit wins.

    seconds: how long it took to generate. If another attempt has already committed the shard, its marker is returned
    and nothing is written, because the data set may be sealed. Raises ShardError for samples that do not belong
    together, OutputError if the store cannot be written.
    """
    ordered = sorted(samples, key=lambda sample: sample.record.index)
    _check_samples(header, ordered)
    if earlier := _earlier_commit(store, header):
        return earlier
    records = [sample.record for sample in ordered]
    with store.staged(parquet_path(header.name)) as parquet, store.staged(tar_path(header.name)) as tar:
        write_tar(tar, ordered)
        write_table(parquet, records, header.manifest_text, header.manifest_digest)
        marker = _marker(header, records, seconds, (hash_file(tar), hash_file(parquet)))
    store.write_bytes(marker_path(header.name), marker.to_json())
    return marker


def _check_samples(header: ShardHeader, samples: Sequence[Sample]) -> None:
    if not samples:
        raise ShardError(f"{header.name}: a shard without samples cannot be committed")
    ((key, count),) = Counter(sample.record.key for sample in samples).most_common(1)
    if count > 1:
        raise ShardError(f"{header.name}: key {key} occurs {count} times")
    for sample in samples:
        record = sample.record
        check_record(record)
        if (record.shard, record.manifest_digest) != (header.shard, header.manifest_digest):
            raise ShardError(f"{header.name}: sample {record.key} belongs to another shard or manifest")
        if record.image_sha256 != hashlib.sha256(sample.png).hexdigest():
            raise ShardError(f"{header.name}: image_sha256 of sample {record.key} is that of another image")


def _earlier_commit(store: Store, header: ShardHeader) -> Marker | None:
    """The marker of a commit whose files exist with the right sizes (seal checks their hashes)."""
    try:
        marker = read_marker(store, header.name)
    except ShardError:
        return None
    if marker is None or marker.manifest_digest != header.manifest_digest:
        return None
    sizes = {tar_path(header.name): marker.tar_bytes, parquet_path(header.name): marker.parquet_bytes}
    whole = all(store.exists(rel) and store.size(rel) == size for rel, size in sizes.items())
    return marker if whole else None


def _marker(
    header: ShardHeader, records: Sequence[SampleRecord], seconds: float, hashes: tuple[FileHash, FileHash]
) -> Marker:
    tar, parquet = hashes
    counts = Counter(record.class_id for record in records)
    return Marker(
        name=header.name,
        shard=header.shard,
        manifest_digest=header.manifest_digest,
        tar_sha256=tar.sha256,
        tar_md5=tar.md5,
        tar_bytes=tar.size_bytes,
        parquet_sha256=parquet.sha256,
        parquet_bytes=parquet.size_bytes,
        rows=len(records),
        counts={str(class_id): counts[class_id] for class_id in sorted(counts)},
        attempt=header.attempt,
        seconds=round(seconds, 3),
        images_per_second=round(len(records) / seconds, 3) if seconds > 0 else 0.0,
        versions=_versions(),
    )


@cache  # looking up one package takes a millisecond
def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "pillow", "webdataset", "pyarrow", "fsspec")
    return {name: version(name) for name in packages} | {"zlib": features.version("zlib") or "unknown"}
