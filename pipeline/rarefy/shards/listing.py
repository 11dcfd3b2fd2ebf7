"""Which shards of a run are committed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from rarefy.shards.marker import STATE, Marker, read_committed
from rarefy.shards.metadata import parquet_path, read_table
from rarefy.shards.store import Store

THREADS = 4  # for object stores, where most time is spent waiting
BATCH = 256


def committed_numbers(store: Store, prefix: str) -> set[int]:
    """Numbers of the shards that have a marker, by one listing. What the markers contain, verify and seal check."""
    pattern = re.compile(rf"{re.escape(prefix)}-(\d{{6,}})\.json", re.ASCII)
    found = {name: match[1] for name in store.files(STATE) if (match := pattern.fullmatch(name))}
    # Six digits, more only for numbers that need them: 0000001 is no shard's number.
    return {int(digits) for digits in found.values() if digits == f"{int(digits):06d}"}


def iter_committed(store: Store, plan_names: Iterable[str], digest: str) -> Iterator[Marker]:
    """Markers in plan order, a batch at a time, without those that are damaged or of other manifests."""
    present = {name.removesuffix(".json") for name in store.files(STATE)}
    names = (name for name in plan_names if name in present)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(names, BATCH)):
            for marker in pool.map(lambda name: read_committed(store, name, digest), batch):
                if marker is not None:
                    yield marker


def count_not_accepted(store: Store, names: Iterable[str]) -> int:
    """Images of these shards that were kept although no candidate passed [accept]. Reads the rows of every shard.

    Raises ShardError for a shard whose metadata cannot be read.
    """

    def count(name: str) -> int:
        with store.local_copy(parquet_path(name)) as path:
            return int(read_table(path)["accepted"].to_pylist().count(False))

    each, total = iter(names), 0
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(each, BATCH)):
            total += sum(pool.map(count, batch))
    return total
