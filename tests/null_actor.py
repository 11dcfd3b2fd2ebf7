"""An actor that samples nothing: it sleeps and commits a marker. Ray's workers import it, so it is a module."""

from __future__ import annotations

import time
from pathlib import Path

import ray

from rarefy.errors import DeviceError
from rarefy.generate.actor import Snapshot
from rarefy.manifest import Manifest
from rarefy.plan import make_plan, shard_name
from rarefy.shards.marker import Marker, marker_path, read_committed
from rarefy.shards.store import Store

SECONDS = 0.3
ZERO = "0" * 64


def sick_nodes(root: str) -> Path:
    """A folder with a file for each machine that lacks its device."""
    return Path(f"{root}-sick")


class NullActor:
    """Has the methods of ShardGenerator that the driver calls."""

    def __init__(self, manifest: Manifest, root: str, *rest: object) -> None:
        self.manifest, self.store, self.made = manifest, Store(root), 0

    def load(self) -> tuple[str, str | None]:
        if (sick_nodes(self.store.root) / ray.get_runtime_context().get_node_id()).exists():
            raise DeviceError("device: 'cuda' is not available: torch finds no GPU on this machine")
        return ZERO, None

    def generate(self, shard: int, attempt: str) -> Marker:
        time.sleep(SECONDS)
        name = shard_name(self.manifest.prefix, shard)
        counts: dict[str, int] = {}
        for slot in make_plan(self.manifest).shard(shard).slots:
            counts[str(slot.class_id)] = counts.get(str(slot.class_id), 0) + 1
        hashes = ZERO, "0" * 32, 1, ZERO, 1
        rows, at = sum(counts.values()), "2026-01-01T00:00:00+00:00"
        marker = Marker(name, shard, self.manifest.digest, *hashes, rows, counts, attempt, 1.0, 1.0, {}, at)
        self.store.create(marker_path(name), marker.to_json())
        self.made += 1
        return read_committed(self.store, name, self.manifest.digest) or marker

    def progress(self) -> Snapshot:
        return Snapshot(advances=self.made)
