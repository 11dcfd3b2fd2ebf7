"""A sealed run of noise."""

from __future__ import annotations

from benchmarks.synthetic import commit_synthetic, synthetic_manifest
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store
from rarefy.stages import seal_run


def write_run(store: Store, shards: int = 3) -> None:
    """A sealed run of ``shards`` shards of noise."""
    manifest = synthetic_manifest(shards, rows=4)
    claim_output(store, manifest.text, manifest.digest)
    for shard in range(shards):
        commit_synthetic(store, manifest, shard, "test")
    seal_run(store)
    store.write_bytes("logs/driver.jsonl", b"{}\n")
