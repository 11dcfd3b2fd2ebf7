"""Which runs compile."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.generate.execution import execution_of, full_batch
from pipeline.manifest import Manifest, load_manifest
from pipeline.models.precision import has_compiler

DEMO = Path(__file__).parents[2] / "manifests" / "demo.toml"  # 25 steps, batches of 50
CPU = torch.device("cpu")


def fast(images: int) -> Manifest:
    return dataclasses.replace(load_manifest(DEMO), precision="fast", counts={0: images}, shard_size=100)


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("images", "compile", "compiled"),
    [(19_950, "auto", False), (19_951, "auto", True), (19_951, "off", False)],  # 400 batches of 25 steps are 10,000
)
def test_auto_compiles_long_runs(images: int, compile: str, compiled: bool) -> None:
    assert execution_of(fast(images), CPU, compile).norm_compiled is compiled


def test_exact_compiles_nothing() -> None:
    manifest = dataclasses.replace(fast(1_000_000), precision="exact")
    assert not execution_of(manifest, CPU, "auto").norm_compiled


@pytest.mark.parametrize(("images", "shard_size", "batch"), [(1000, 100, 50), (1000, 30, 30), (20, 100, 20)])
def test_full_batch(images: int, shard_size: int, batch: int) -> None:
    assert full_batch(dataclasses.replace(fast(images), shard_size=shard_size)) == batch
