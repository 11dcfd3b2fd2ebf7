"""Two attempts at one shard, on machines that round differently, one storage call at a time in every order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stepped import Race, races

from rarefy.shards import writer
from rarefy.shards.marker import Marker, read_committed
from rarefy.shards.metadata import write_table
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png, write_tar

NAME, DIGEST = "rare-000000", "d" * 64
TAR, PARQUET, MARKER = f"shards/{NAME}.tar", f"metadata/{NAME}.parquet", f"state/{NAME}.json"
FILES = (TAR, PARQUET, MARKER)
Make = Callable[..., Sample]


def content(store: Store) -> dict[str, bytes | None]:
    return {rel: store.read_or_none(rel) for rel in FILES}


def rounded(sample: Sample, machine: int) -> Sample:
    """What another machine makes of the same slot: one grey level and the last digits of the scores differ."""
    pixels = np.array(Image.open(io.BytesIO(sample.png)))
    pixels[0, 0] ^= machine
    png = encode_png(np.moveaxis(pixels, -1, 0))
    assert sample.record.confidence is not None
    changed = {"confidence": sample.record.confidence + machine * 1e-9, "image_sha256": sha256(png)}
    return Sample(replace(sample.record, **changed), png)  # type: ignore[arg-type]  # by name


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def leave_behind(store: Store, samples: Sequence[Sample], state: str) -> None:
    """What is in the output when the two attempts begin."""
    if state == "nothing":
        return
    marker = commit_shard(store, ShardHeader(NAME, 0, "text", DIGEST, "earlier"), samples, seconds=1.0)
    tar, parquet = store.read_bytes(TAR), store.read_bytes(PARQUET)
    match state:
        case "a tar alone":
            store.delete(MARKER)
            store.delete(PARQUET)
        case "tar and Parquet":
            store.delete(MARKER)
        case "half a tar":
            store.delete(MARKER)
            store.write_bytes(TAR, tar[:2000])
        case "a marker without its tar":
            store.delete(TAR)
        case "a marker with half a tar":
            store.write_bytes(TAR, tar[:2000])
        case "a marker with half a Parquet file":
            store.write_bytes(PARQUET, parquet[:2000])
        case "a damaged marker":
            store.write_bytes(MARKER, b'{"rows": null}')
        case "another manifest's marker":
            store.write_bytes(MARKER, replace(marker, manifest_digest="e" * 64).to_json())


def check(race: Race, tars: set[bytes]) -> None:
    """One commit, whole, by one machine; unchanged since the first attempt returned; both attempts name it."""
    end = content(race.store)
    assert race.seen == end
    marker = read_committed(race.store, NAME, DIGEST)
    assert race.results == {0: marker, 1: marker} and isinstance(marker, Marker)
    tar, parquet = end[TAR], end[PARQUET]
    assert tar in tars and parquet is not None
    assert (marker.tar_sha256, marker.parquet_sha256) == (sha256(tar), sha256(parquet))
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        texts = [members.extractfile(member).read() for member in members if member.name.endswith(".json")]  # type: ignore[union-attr]  # every member is a file
    assert [json.loads(text) for text in texts] == pq.read_table(pa.BufferReader(parquet)).to_pylist()


STATES = (
    "nothing", "a tar alone", "tar and Parquet", "half a tar", "a marker without its tar", "a marker with half a tar",
    "a marker with half a Parquet file", "a damaged marker", "another manifest's marker",
)  # fmt: skip


@pytest.fixture
def machines(make_sample: Make) -> list[list[Sample]]:
    """The shard of two samples as three machines make it; the third ran earlier."""
    return [[rounded(make_sample(0, index), machine) for index in range(2)] for machine in range(3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three machines' files are encoded once, and nothing is synced: thousands of commits in a few seconds."""
    made: dict[Any, bytes] = {}

    def remembered(write: Callable[..., None], key: Callable[[Any], Any]) -> Callable[..., None]:
        def call(stream: io.BytesIO, items: Sequence[Any], *texts: str) -> None:
            name = (write, tuple(key(item) for item in items))
            if name not in made:
                write(own := io.BytesIO(), items, *texts)
                made[name] = own.getvalue()
            stream.write(made[name])

        return call

    monkeypatch.setattr(writer, "write_tar", remembered(write_tar, lambda sample: sample.record))
    monkeypatch.setattr(writer, "write_table", remembered(write_table, lambda record: record))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def run_all(root: str, state: str, machines: list[list[Sample]], switches: int) -> int:
    """Check every order; returns their number."""
    tars = set()
    for samples in machines:
        write_tar(stream := io.BytesIO(), samples)
        tars.add(stream.getvalue())

    def attempt(number: int, store: Store) -> Marker:
        header = ShardHeader(NAME, 0, "text", DIGEST, f"attempt {number}")
        return commit_shard(store, header, machines[number], seconds=1.0)

    attempts = [partial(attempt, number) for number in (0, 1)]

    def begin() -> Race:
        leave_behind(Store(root), machines[2], state)
        return Race(root, attempts, content)

    number = 0
    for race in races(begin, switches):
        check(race, tars)
        number += 1
        for rel in FILES:
            race.store.delete(rel)
    return number


@pytest.mark.parametrize("state", STATES)
def test_orders_in_memory(state: str, machines: list[list[Sample]]) -> None:
    """One switch: an attempt stops before any of its calls, another one runs, and then the first goes on."""
    switches = 2 if state == "nothing" else 1
    assert run_all(f"memory://overlap-{uuid.uuid4().hex}", state, machines, switches) > 20


@pytest.mark.parametrize("state", ["nothing", "half a tar", "a marker with half a tar"])
def test_orders_on_a_local_disk(state: str, machines: list[list[Sample]], tmp_path: Path) -> None:
    assert run_all(str(tmp_path), state, machines, switches=1) > 20


def test_orders_on_s3(machines: list[list[Sample]], bucket: str) -> None:
    assert run_all(f"{bucket}/overlap", "nothing", machines, switches=1) > 20
