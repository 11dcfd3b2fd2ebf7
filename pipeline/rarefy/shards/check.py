"""Checks one committed shard: its marker, Parquet file and tar against the plan, and against each other."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from rarefy.errors import NAMES_SHOWN, ShardError, StorageError, bad
from rarefy.shards.contents import check_rows, check_samples
from rarefy.shards.marker import Marker, marker_path, parse_marker
from rarefy.shards.metadata import parquet_path, parse_table, tar_path, to_records
from rarefy.shards.retry import one_line
from rarefy.shards.spec import ShardSpec
from rarefy.shards.store import Store

NOT_COMMITTED = "not committed (no marker)"
IN_MEMORY_BYTES = 1 << 26  # files up to this size are read once, larger ones are first hashed and then read
MARKER_BYTES = 1 << 20  # a marker has about 1 kB
HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Checked:
    """The result for one shard.

    problems: one line each, none for an intact shard; marker: as read, None if there is none that can be read; judged:
    SHA-256 of the marker's file; contradicts_plan: the files may be the marker's, but the marker or their contents are
    not the plan's; weights: SHA-256 of the diffusion model's and the classifier's (None without one);
    beyond_limit, not_accepted: samples that took more candidates than the manifest allows, and those kept although no
    candidate passed its [accept].
    """

    name: str
    problems: tuple[str, ...] = ()
    marker: Marker | None = None
    judged: str | None = None
    contradicts_plan: bool = False
    weights: tuple[str, str | None] | None = None
    beyond_limit: int = 0
    not_accepted: int = 0


def check_shard(store: Store, spec: ShardSpec, digest: str) -> Checked:
    """Compare a committed shard with what the plan says about it. digest: of the run's manifest.

    Files are hashed first, and only those that are what the marker says are parsed. Raises OutputError if the store
    cannot be read at the moment, which says nothing about the shard.
    """
    rel = marker_path(spec.name)
    try:
        data = read_marker_file(store, spec.name)
    except ShardError as error:
        return Checked(spec.name, (str(error),))
    if data is None:
        return Checked(spec.name, (NOT_COMMITTED,))
    judged = sha256_of(data)
    try:
        marker = parse_marker(data, rel)
    except ShardError as error:
        return Checked(spec.name, (str(error),), judged=judged)
    if problem := _compare_marker(marker, spec, digest):
        return Checked(spec.name, (problem,), marker, judged, contradicts_plan=True)
    checked = Checked(spec.name, marker=marker, judged=judged)
    try:
        return _check_files(store, marker, spec, checked)
    except OSError as cause:
        place = f"{store.root}/{tar_path(spec.name)}"
        raise StorageError(bad("out", place, f"readable at the moment ({one_line(cause)})")) from cause


def read_marker_file(store: Store, name: str) -> bytes | None:
    """The bytes of a shard's marker, None if there is none. Raises ShardError for something else of that name."""
    rel = marker_path(name)
    if store.is_local:  # on object stores, a call less for each shard
        size = _file_size(store, rel)
        if size is not None and size > MARKER_BYTES:
            raise ShardError(f"{rel}: not a commit marker, which is at most {MARKER_BYTES:,} bytes long")
    return store.read_or_none(rel)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_size(store: Store, rel: str) -> int | None:
    """Size in bytes, None if the file is missing. Raises ShardError for something else, such as a folder or a pipe."""
    if not store.is_local:
        return store.size_or_none(rel)
    try:
        status = os.stat(f"{store.path}/{rel}")  # noqa: PTH116 - a Path takes longer than the call
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return store.size_or_none(rel)  # which repeats the call while that may help, and names the place
    if not stat.S_ISREG(status.st_mode):
        raise ShardError(f"{rel} is not a file; move it elsewhere")
    return status.st_size


def _compare_marker(marker: Marker, spec: ShardSpec, digest: str) -> str:
    """How a marker contradicts the plan; empty if it agrees."""
    if marker.manifest_digest != digest:
        return f"its marker is for manifest {marker.manifest_digest}, not {digest}"
    if (marker.name, marker.shard) != (spec.name, spec.number):
        return f"its marker is that of shard {marker.shard}, {marker.name}"
    if marker.rows != len(spec.rows):
        return f"its marker says {marker.rows} samples, the plan says {len(spec.rows)}"
    planned = Counter(str(row.class_id) for row in spec.rows)
    if marker.counts != planned:
        return f"its marker says the class counts {dict(marker.counts)}, the plan says {dict(planned)}"
    return ""


def _check_files(store: Store, marker: Marker, spec: ShardSpec, checked: Checked) -> Checked:
    """Check the Parquet file and the tar, and what they contain if both have the marker's hashes."""
    problems: list[str] = []
    rows = marker.parquet_bytes, {"sha256": marker.parquet_sha256}
    samples = marker.tar_bytes, {"sha256": marker.tar_sha256, "md5": marker.tar_md5}
    with ExitStack() as stack:
        parquet = _whole_file(store, parquet_path(spec.name), rows, stack, problems)
        tar = _whole_file(store, tar_path(spec.name), samples, stack, problems)
        if parquet is None or tar is None:
            return replace(checked, problems=tuple(problems))
        return _check_contents(parquet, tar, spec, marker.manifest_digest, checked)


def _check_contents(parquet: BinaryIO, tar: BinaryIO, spec: ShardSpec, digest: str, checked: Checked) -> Checked:
    try:
        table = parse_table(parquet, parquet_path(spec.name))
    except ShardError as error:
        return replace(checked, problems=(str(error),), contradicts_plan=True)
    records = to_records(table)
    problems = check_rows(table, records, spec, digest) or check_samples(tar, records, spec.name)
    if problems:
        return replace(checked, problems=_first_lines(problems), contradicts_plan=True)
    return replace(
        checked,
        weights=(records[0].checkpoint_sha256, records[0].classifier_sha256),
        beyond_limit=sum(record.candidate >= spec.max_candidates for record in records),
        not_accepted=sum(not record.accepted for record in records),
    )


def _whole_file(
    store: Store, rel: str, expected: tuple[int, Mapping[str, str]], stack: ExitStack, problems: list[str]
) -> BinaryIO | None:
    """The file, open until the stack is closed; None, and a problem, if it has not the expected size and hashes."""
    size_bytes, hashes = expected
    try:
        if (actual_bytes := _file_size(store, rel)) is None:
            raise ShardError(f"{rel} is missing")
        if actual_bytes != size_bytes:
            raise ShardError(f"{rel} has {actual_bytes} bytes, its marker says {size_bytes}")
        stream = stack.enter_context(_opened(store, rel, in_memory=size_bytes <= IN_MEMORY_BYTES))
        for name, actual in _hash(stream, hashes).items():
            if actual != hashes[name]:
                raise ShardError(f"{rel} has {name} {actual}, its marker says {hashes[name]}")
    except ShardError as error:
        problems.append(str(error))
        return None
    stream.seek(0)
    return stream


@contextmanager
def _opened(store: Store, rel: str, in_memory: bool) -> Iterator[BinaryIO]:
    if in_memory:
        data = store.read_or_none(rel)
        if data is None:
            raise ShardError(f"{rel} is missing")
        yield io.BytesIO(data)
        return
    with store.local_copy(rel) as path, path.open("rb") as stream:
        yield stream


def _hash(stream: BinaryIO, names: Iterable[str]) -> dict[str, str]:
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    while block := stream.read(HASH_BYTES):
        for each in hashes.values():
            each.update(block)
    return {name: each.hexdigest() for name, each in hashes.items()}


def _first_lines(problems: Sequence[str]) -> tuple[str, ...]:
    """A shard with other contents has a problem a sample: the first few tell enough."""
    more = [f"and {len(problems) - NAMES_SHOWN} more problems"] if len(problems) > NAMES_SHOWN else []
    return (*problems[:NAMES_SHOWN], *more)
