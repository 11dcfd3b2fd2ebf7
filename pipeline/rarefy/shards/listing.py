"""Which shards of a run are committed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from rarefy.errors import ShardError
from rarefy.shards.marker import Marker, read_marker
from rarefy.shards.store import Store
from rarefy.shards.verify import THREADS


def committed(store: Store, plan_names: Iterable[str], digest: str) -> dict[str, Marker]:
    """Markers by shard name, in plan order. Damaged markers and those of other manifests are left out."""
    present = set(store.list("state"))
    names = [name for name in plan_names if f"{name}.json" in present]
    with ThreadPoolExecutor(THREADS) as pool:
        markers = pool.map(lambda name: _marker_or_none(store, name), names)
        return {
            name: marker
            for name, marker in zip(names, markers, strict=True)
            if marker is not None and marker.manifest_digest == digest
        }


def committed_numbers(store: Store, prefix: str) -> set[int]:
    """Numbers of the shards that have a marker, by one listing. seal and verify check what is in the markers."""
    pattern = re.compile(rf"{re.escape(prefix)}-(\d{{6,}})\.json")
    return {int(found[1]) for name in store.list("state") if (found := pattern.fullmatch(name))}


def _marker_or_none(store: Store, name: str) -> Marker | None:
    try:
        return read_marker(store, name)
    except ShardError:
        return None
