"""The batch size for which a run's networks are prepared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rarefy.generate.execution import full_batch
from rarefy.manifest import load_manifest

DEMO = Path(__file__).parents[2] / "manifests" / "demo.toml"


@pytest.mark.parametrize(("images", "shard_size", "batch"), [(1000, 100, 50), (1000, 30, 30), (20, 100, 20)])
def test_full_batch(images: int, shard_size: int, batch: int) -> None:
    manifest = dataclasses.replace(load_manifest(DEMO), counts={0: images}, shard_size=shard_size, batch=50)
    assert full_batch(manifest) == batch
