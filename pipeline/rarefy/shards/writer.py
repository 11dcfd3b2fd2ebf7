"""Commits a shard: tar, Parquet file and, last, the marker. Each is created only if it is absent.

So the first attempt that puts a whole tar in place decides the shard's content, and every other attempt, from whatever
machine, describes that tar. A file is deleted only if it is damaged, and only while it still has the damaged content.
An attempt may therefore stop anywhere, for any time, and go on: what was committed meanwhile stays as it is.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from rarefy.errors import ShardError, StorageError, bad
from rarefy.shards.adopt import records_in_tar, rows_agree
from rarefy.shards.index import SUCCESS
from rarefy.shards.marker import FileHash, Marker, hash_bytes, marker_path, parse_committed, parse_marker
from rarefy.shards.metadata import SampleRecord, check_record, parquet_path, tar_path, write_table
from rarefy.shards.store import Store

PNG_LEVEL = 6
TAR_OWNER = "rarefy"
TRIES = 3  # to put a file in place of a damaged one


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


def write_tar(stream: BinaryIO, samples: Sequence[Sample]) -> None:
    """WebDataset tar in the given order. Its bytes depend only on the samples' images and rows."""
    options = {"user": TAR_OWNER, "group": TAR_OWNER, "mtime": 0, "encoder": False}
    import webdataset  # it imports torch, which seal does not need

    with webdataset.TarWriter(stream, **options) as tar:
        for sample in samples:
            record = sample.record
            fields = {"png": sample.png, "cls": str(record.class_id).encode(), "json": record.stable_json()}
            tar.write({"__key__": record.key, **fields})


def commit_shard(store: Store, header: ShardHeader, samples: Sequence[Sample], seconds: float) -> Marker:
    """Write one shard completely or not at all, and return the marker of the attempt that committed it.

    seconds: how long it took to generate. The first attempt to commit wins: if that was another one, its marker is
    returned (its ``attempt`` differs from the header's) and nothing is changed, because the data set may be sealed.
    Raises ShardError for samples that do not belong together, StorageError if another attempt may succeed, OutputError
    if the store cannot be written.
    """
    ordered = sorted(samples, key=lambda sample: sample.record.index)
    _check_samples(header, ordered)
    return commit_samples(store, header, ordered, seconds)


def commit_samples(store: Store, header: ShardHeader, ordered: Sequence[Sample], seconds: float) -> Marker:
    """As ``commit_shard``, in the given order. The samples may have the keys, shards and indices of other shards."""
    if winner := _winner(store, header):
        return winner
    tar, records = _place_tar(store, header, ordered)
    parquet = _place_parquet(store, header, records)
    marker = make_marker(header, records, seconds, (tar, parquet))
    data = marker.to_json()
    for _ in range(TRIES):
        if store.create(marker_path(header.name), data):
            _confirm(store, marker, data)
            return marker
        if winner := _winner(store, header):
            return winner
    raise _crowded(store, marker_path(header.name))


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


def _winner(store: Store, header: ShardHeader) -> Marker | None:
    """The marker of a commit whose files exist with the right sizes (seal checks their hashes).

    Any other marker of that name is taken back.
    """
    rel = marker_path(header.name)
    while (data := store.read_or_none(rel)) is not None:
        marker = parse_committed(data, header.name, header.manifest_digest)
        whole = marker is not None and _has_sizes(store, marker)
        if store.read_or_none(rel) != data:
            continue  # another attempt took it back meanwhile, so the sizes may be those of its own files
        if whole:
            return marker
        take_back(store, header.name, data)
    return None


def take_back(store: Store, name: str, data: bytes) -> None:
    """Withdraw a shard's marker, first those of its files that are not the ones it names, and before them ``_SUCCESS``.

    data: the marker's content when the shard was found to be damaged. In this order no attempt can mistake a damaged
    file for one that only lacks its marker. What another attempt has put there meanwhile stays.
    """
    rel = marker_path(name)
    hashes = _hashes_in(data, name)
    found = {file: _sha256(store, file) for file in hashes}
    # Files of another attempt are put in place only after this marker was withdrawn, so these are not among them.
    if store.read_or_none(rel) != data:
        return
    store.delete(SUCCESS)
    for file, sha256 in hashes.items():
        if (other := found[file]) not in (None, sha256):
            store.withdraw(file, other)
    store.withdraw(rel, hash_bytes(data).sha256)


def _place_tar(store: Store, header: ShardHeader, samples: Sequence[Sample]) -> tuple[FileHash, list[SampleRecord]]:
    """Put the tar in place, or adopt the one that is there. Returns its hash and rows."""
    rel, own = tar_path(header.name), [sample.record for sample in samples]
    stream = io.BytesIO()
    write_tar(stream, samples)
    data = stream.getvalue()
    for _ in range(TRIES):
        if store.create(rel, data):
            return hash_bytes(data), own
        found = store.read_or_none(rel)
        if found == data:
            return hash_bytes(data), own
        if found is not None and (theirs := records_in_tar(found, own)):
            return hash_bytes(found), theirs
        if found is not None:
            store.withdraw(rel, hash_bytes(found).sha256)
    raise _crowded(store, rel)


def _place_parquet(store: Store, header: ShardHeader, records: Sequence[SampleRecord]) -> FileHash:
    """Put the rows of the tar that is in place beside it, or adopt a file that has them."""
    rel, stream = parquet_path(header.name), io.BytesIO()
    write_table(stream, records, header.manifest_text, header.manifest_digest)
    data = stream.getvalue()
    for _ in range(TRIES):
        if store.create(rel, data):
            return hash_bytes(data)
        found = store.read_or_none(rel)
        if found is not None and (found == data or rows_agree(found, records, header.manifest_digest)):
            return hash_bytes(found)
        if found is not None:
            store.withdraw(rel, hash_bytes(found).sha256)
    raise _crowded(store, rel)


def _confirm(store: Store, marker: Marker, data: bytes) -> None:
    """Check that the files in place are the ones that the new marker names; otherwise withdraw it.

    An object store that creates atomically keeps whole files as they are, so that comparing sizes is enough there.
    """
    if store.creates_atomically and not store.is_local:
        kept = _has_sizes(store, marker)
    else:
        hashes = _hashes(marker) | {marker_path(marker.name): hash_bytes(data).sha256}
        kept = all(_sha256(store, rel) == sha256 for rel, sha256 in hashes.items())
    if not kept:
        store.withdraw(marker_path(marker.name), hash_bytes(data).sha256)
        raise _crowded(store, marker_path(marker.name))


def _has_sizes(store: Store, marker: Marker) -> bool:
    sizes = {tar_path(marker.name): marker.tar_bytes, parquet_path(marker.name): marker.parquet_bytes}
    return all(store.size_or_none(rel) == size for rel, size in sizes.items())


def _hashes(marker: Marker) -> dict[str, str]:
    return {tar_path(marker.name): marker.tar_sha256, parquet_path(marker.name): marker.parquet_sha256}


def _hashes_in(data: bytes, name: str) -> dict[str, str]:
    """The hashes of the shard's files that a marker names; none if it is damaged or of another shard."""
    try:
        marker = parse_marker(data, name)
    except ShardError:
        return {}
    return _hashes(marker) if marker.name == name else {}


def _sha256(store: Store, rel: str) -> str | None:
    data = store.read_or_none(rel)
    return None if data is None else hash_bytes(data).sha256


def _crowded(store: Store, rel: str) -> StorageError:
    allowed = "as this attempt left it: another attempt at the same shard changed it; the next attempt settles it"
    return StorageError(bad("out", f"{store.root}/{rel}", allowed))


def make_marker(
    header: ShardHeader, records: Sequence[SampleRecord], seconds: float, hashes: tuple[FileHash, FileHash]
) -> Marker:
    """The marker of a shard with these rows. hashes: of the tar and of the Parquet file."""
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
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@cache  # looking up one package takes a millisecond
def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "pillow", "webdataset", "pyarrow", "fsspec")
    return {name: version(name) for name in packages} | {"zlib": features.version("zlib") or "unknown"}
