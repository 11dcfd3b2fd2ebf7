"""A small run, in a local folder and in memory: three shards, each with six 5x4 images of two classes."""

from __future__ import annotations

import functools
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from s3_stand_in import bucket, s3_server

from rarefy.shards.card import CardInfo
from rarefy.shards.claim import claim_output
from rarefy.shards.metadata import SampleRecord, sample_key
from rarefy.shards.spec import RowSpec, RunSpec, ShardSpec
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png

__all__ = ["bucket", "s3_server"]  # fixtures
TEXT = 'name = "probe"  # kept verbatim\n'
DIGEST = "d" * 64
NAMES = ["rare-000000", "rare-000001", "rare-000002"]
COUNTS = {0: 9, 1: 9}
PER_SHARD = 6
CARD_NAME = 'odd: "name" # 1'


def shard_image(shard: int, index: int, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng([shard, index])
    return generator.integers(0, 256, (channels, 4, 5), dtype=np.uint8)


def shard_sample(shard: int, index: int, digest: str = DIGEST, channels: int = 3) -> Sample:
    png = encode_png(shard_image(shard, index, channels))
    record = SampleRecord(
        key=sample_key(shard, index),
        shard=shard,
        index=index,
        class_id=index % 2,
        class_name=("t-shirt/top", "ankle boot")[index % 2],
        predicted_id=index % 2,
        confidence=0.1 * index + 1 / 3,
        entropy=0.5,
        entropy_normalized=0.25,
        margin=0.125,
        seed=shard_seed(index, 0),
        candidate=0,
        guidance="classifier+low-confidence",
        steps=250,
        checkpoint_sha256="a" * 64,
        classifier_sha256="b" * 64,
        manifest_digest=digest,
        image_sha256=hashlib.sha256(png).hexdigest(),
        width=5,
        height=4,
        accepted=index != 3,
    )
    return Sample(record, png)


def shard_samples(shard: int) -> list[Sample]:
    return [shard_sample(shard, index) for index in range(PER_SHARD)]


@pytest.fixture
def make_samples() -> Callable[[int], list[Sample]]:
    return shard_samples


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    return shard_sample


@pytest.fixture
def make_image() -> Callable[..., np.ndarray]:
    return shard_image


@pytest.fixture
def make_header() -> Callable[[int], ShardHeader]:
    return lambda shard: ShardHeader(NAMES[shard], shard, TEXT, DIGEST, f"attempt-{uuid.uuid4().hex}")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    root = str(tmp_path / "out") if request.param == "local" else f"memory://rarefy-{uuid.uuid4().hex}"
    return Store(root)


@pytest.fixture
def run(store: Store, make_header: Callable[[int], ShardHeader]) -> Store:
    """The output of a run whose three shards are committed."""
    claim_output(store, TEXT, DIGEST)
    for shard in range(len(NAMES)):
        commit_shard(store, make_header(shard), shard_samples(shard), seconds=2.0)
    return store


@pytest.fixture
def plan() -> tuple[str, str, list[str], dict[int, int]]:
    """Arguments of seal: manifest text, digest, shard names, samples by class."""
    return TEXT, DIGEST, NAMES, COUNTS


@pytest.fixture
def spec() -> RunSpec:
    """What the plan says about the run."""
    return RunSpec(CARD_NAME, DIGEST, [shard_spec(shard) for shard in range(len(NAMES))], COUNTS)


def shard_spec(shard: int) -> ShardSpec:
    rows = (
        RowSpec(sample_key(shard, index), index, index % 2, functools.partial(shard_seed, index))
        for index in range(PER_SHARD)
    )
    return ShardSpec(NAMES[shard], shard, tuple(rows))


def shard_seed(index: int, candidate: int) -> int:
    return 2**63 - 1 - index - 1000 * candidate


@pytest.fixture
def card() -> CardInfo:
    return CardInfo(
        name=CARD_NAME,
        preset="fashion-mnist-28",
        image_size=4,
        channels=3,
        class_names=("t-shirt/top", "ankle boot"),
        guidance=("classifier", "low-confidence"),
        sampler="ancestral, 250 steps",
    )
