"""Which runs compile, and which take the project's kernels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.generate import execution
from pipeline.generate.execution import execution_of, full_batch
from pipeline.manifest import Manifest, load_manifest
from pipeline.models import native
from pipeline.models.precision import Capability

DEMO = Path(__file__).parents[2] / "manifests" / "demo.toml"  # 25 steps, batches of 50
CPU = torch.device("cpu")


def fast(images: int) -> Manifest:
    return dataclasses.replace(load_manifest(DEMO), precision="fast", counts={0: images}, shard_size=100)


@pytest.mark.parametrize(
    ("images", "compile", "compiled"),
    [(19_950, "auto", False), (19_951, "auto", True), (19_951, "off", False)],  # 400 batches of 25 steps are 10,000
)
def test_auto_compiles_long_runs_on_a_gpu(
    images: int, compile: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is made up: none is here, and the choice needs none."""
    monkeypatch.setattr(execution, "capability", lambda device: Capability("cuda", True, True, False))
    assert execution_of(fast(images), torch.device("cuda"), compile).norm_compiled is compiled


@pytest.mark.parametrize(("precision", "images"), [("exact", 1), ("fast", 1), ("fast", 1_000_000)])
def test_auto_takes_the_kernels_on_a_cpu_whatever_the_run(precision: str, images: int) -> None:
    found = execution_of(dataclasses.replace(fast(images), precision=precision), CPU, "auto")
    assert (found.native, found.norm_compiled) == (native.available(), False)


@pytest.mark.parametrize(("images", "shard_size", "batch"), [(1000, 100, 50), (1000, 30, 30), (20, 100, 20)])
def test_full_batch(images: int, shard_size: int, batch: int) -> None:
    assert full_batch(dataclasses.replace(fast(images), shard_size=shard_size)) == batch
