"""Two attempts at one shard, on machines that round differently, one storage call at a time in every order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rarefy.shards import writer
from rarefy.shards.marker import Marker, read_committed
from rarefy.shards.metadata import write_table
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png, write_tar

NAME, DIGEST = "rare-000000", "d" * 64
TAR, PARQUET, MARKER = f"shards/{NAME}.tar", f"metadata/{NAME}.parquet", f"state/{NAME}.json"
FILES = (TAR, PARQUET, MARKER)
Make = Callable[..., Sample]


class Turns:
    """Lets one thread at a time make its next storage call."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.granted: dict[int, threading.Semaphore] = {}
        self.ended: set[int] = set()

    def wait(self, me: int) -> None:
        self.arrived.release()
        self.granted[me].acquire()

    def grant(self, me: int) -> None:
        self.granted[me].release()
        self.arrived.acquire()


class Stepped:
    """Asks for a turn before each call of the files below."""

    def __init__(self, files: Any, turns: Turns, me: int) -> None:
        self._inner, self._turns, self._me = files, turns, me

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def stepped(*arguments: Any) -> Any:
            self._turns.wait(self._me)
            return value(*arguments)

        return stepped


class Race:
    """Two attempts in threads. results: marker or error of each; seen: the files' bytes when the first ended."""

    def __init__(self, root: str, samples: Sequence[Sequence[Sample]]) -> None:
        self.store = Store(root, patience_s=0.0)
        self.turns, self.results = Turns(), dict[int, Any]()
        self.threads = [threading.Thread(target=self._attempt, args=(me, root, samples[me])) for me in (0, 1)]
        self.seen: dict[str, bytes | None] | None = None
        for me, thread in enumerate(self.threads):
            self.turns.granted[me] = threading.Semaphore(0)
            thread.start()
            self.turns.arrived.acquire()

    def _attempt(self, me: int, root: str, samples: Sequence[Sample]) -> None:
        store = Store(root, patience_s=0.0)
        store._files = Stepped(store._files, self.turns, me)  # type: ignore[assignment]  # the same methods
        header = ShardHeader(NAME, 0, "text", DIGEST, f"attempt {me}")
        self.turns.wait(me)
        try:
            self.results[me] = commit_shard(store, header, samples, seconds=1.0)
        except Exception as error:  # the main thread reports it
            self.results[me] = error
        self.turns.ended.add(me)
        self.turns.arrived.release()

    def run(self, order: Sequence[int]) -> list[tuple[int, bool]]:
        """Follow ``order``, then finish attempt 0 before attempt 1.

        Returns whose turn each was, and whether the other attempt could have taken it.
        """
        turns: list[tuple[int, bool]] = []
        while able := [me for me in (0, 1) if me not in self.turns.ended]:
            me = order[len(turns)] if len(turns) < len(order) else able[0]
            turns.append((me, len(able) == 2))
            self.turns.grant(me)
            if self.turns.ended and self.seen is None:
                self.seen = content(self.store)
        for thread in self.threads:
            thread.join()
        return turns


def content(store: Store) -> dict[str, bytes | None]:
    return {rel: store.read_or_none(rel) for rel in FILES}


def races(begin: Callable[[], Race], switches: int) -> Iterator[Race]:
    """All orders in which the turns change hands at most ``switches`` times before one attempt has ended."""
    todo: list[tuple[int, ...]] = [(), (1,)]
    while todo:
        order = todo.pop()
        race = begin()
        turns = race.run(order)
        yield race
        taken = tuple(me for me, _ in turns)
        for place in range(len(order), len(turns)):
            branch = (*taken[:place], 1 - taken[place])
            changes = sum(one != two for one, two in pairwise(branch))
            if place and turns[place][1] and changes <= switches:
                todo.append(branch)


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

    def begin() -> Race:
        leave_behind(Store(root), machines[2], state)
        return Race(root, machines)

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
