"""Stands in for the actor: commits shards at once, without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.synthetic import WEIGHTS, commit_synthetic, named
from rarefy.generate import driver
from rarefy.generate.actor import Snapshot
from rarefy.manifest import Manifest
from rarefy.shards.marker import Marker, marker_path, read_marker
from rarefy.shards.store import Store


class NullGenerator:
    """Has the methods of ShardGenerator that the driver calls. It commits whole shards of noise."""

    def __init__(self, manifest: Manifest, root: str, *rest: Any) -> None:
        self.manifest, self.root, self.made = manifest, root, 0

    def load(self) -> tuple[str, str | None]:
        self.store = Store(self.root)
        return WEIGHTS

    def generate(self, shard: int, attempt: str) -> Marker:
        self.made += 1
        return self._commit(shard, attempt)

    def progress(self) -> Snapshot:
        return Snapshot(advances=self.made)

    def _commit(self, shard: int, attempt: str) -> Marker:
        return commit_synthetic(self.store, self.manifest, shard, attempt)


class MarkerGenerator(NullGenerator):
    """Writes markers alone, so that a driver can be timed that outruns what actors can write."""

    def load(self) -> tuple[str, str | None]:
        weights = super().load()
        first = read_marker(self.store, f"{self.manifest.prefix}-{0:06d}")
        assert first is not None, "the benchmark commits the first shard itself"
        self.model = first
        return weights

    def _commit(self, shard: int, attempt: str) -> Marker:
        marker = replace(named(self.model, self.manifest, shard), attempt=attempt)
        with open(f"{self.store.path}/{marker_path(marker.name)}", "xb") as file:  # noqa: PTH123 - in one step, without fsync
            file.write(marker.to_json())
        return marker


def use(generator: type) -> None:
    """From now on, this process's driver starts these actors."""
    vars(driver)["ShardGenerator"] = generator
