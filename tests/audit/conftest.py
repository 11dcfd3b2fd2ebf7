"""Committed runs for the audit, made of given images without any network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rarefy.manifest import Manifest, parse_manifest
from rarefy.plan import Slot, make_plan, sample_seed, shard_name
from rarefy.shards.claim import claim_output
from rarefy.shards.metadata import SampleRecord, sample_key
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png

# (class id, ordinal) -> image (C, H, W), predicted id, confidence
Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def blob() -> Blob:
    return make_blob


@pytest.fixture
def commit_run() -> Callable[[Store, str], Manifest]:
    """Commits every shard of a manifest (store, TOML text), with blobs as images."""
    return lambda store, text: commit_every(store, text, make_blob)


@pytest.fixture
def commit_images() -> Callable[[Store, str, Blob], Manifest]:
    """As commit_run, with the caller's images."""
    return commit_every


@pytest.fixture
def real_folder(tmp_path: Path) -> Path:
    """Ten class folders with 20 blobs each, none of which is in a run."""
    for class_id in range(10):
        folder = tmp_path / "real" / str(class_id)
        folder.mkdir(parents=True)
        for ordinal in range(20):
            Image.fromarray(make_blob(class_id, 1000 + ordinal)[0][0]).save(folder / f"{ordinal:02d}.png")
    return tmp_path / "real"


def commit_every(store: Store, text: str, source: Blob) -> Manifest:
    """Commit every shard of the manifest; source(class id, ordinal) -> image (C, H, W), predicted id, confidence."""
    manifest = parse_manifest(text, "test")
    plan = make_plan(manifest)
    claim_output(store, text, manifest.digest)
    for shard in range(plan.num_shards):
        samples = []
        for slot in plan.shard(shard).slots:
            image, predicted, confidence = source(slot.class_id, slot.class_index)
            image = fit(image, manifest.preset.channels, manifest.preset.image_size)
            samples.append(make_sample(manifest, (shard, slot), image, (predicted, confidence)))
        header = ShardHeader(shard_name(manifest.prefix, shard), shard, text, manifest.digest, "test")
        commit_shard(store, header, samples, 1.0)
    return manifest


def fit(image: NDArray[np.uint8], channels: int, size: int) -> NDArray[np.uint8]:
    """The image padded with black to the preset's size; grey is repeated if the preset is in colour."""
    edge = size - image.shape[1]
    framed = np.pad(image, ((0, 0), (0, edge), (0, edge)))
    return framed if channels == image.shape[0] else np.repeat(framed, channels, axis=0)


def make_sample(
    manifest: Manifest, place: tuple[int, Slot], image: NDArray[np.uint8], seen: tuple[int, float]
) -> Sample:
    png, (shard, slot), (predicted, confidence) = encode_png(image), place, seen
    index, class_id = slot.index, slot.class_id
    entropy = float(-confidence * np.log(confidence))
    record = SampleRecord(
        key=sample_key(shard, index),
        shard=shard,
        index=index,
        class_id=class_id,
        class_name=manifest.preset.class_name(class_id),
        predicted_id=predicted,
        confidence=confidence,
        entropy=entropy,
        entropy_normalized=entropy / float(np.log(manifest.preset.classifier_classes)),
        margin=0.1,
        seed=sample_seed(manifest.seed, class_id, slot.class_index, 0),
        candidate=0,
        guidance="",
        steps=250,
        checkpoint_sha256="0" * 64,
        classifier_sha256="1" * 64,
        manifest_digest=manifest.digest,
        image_sha256=hashlib.sha256(png).hexdigest(),
        width=image.shape[2],
        height=image.shape[1],
        accepted=True,
    )
    return Sample(record, png)


def make_blob(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
    """A soft spot at a place set by its class and of random size; every fourth image is predicted as the next class."""
    generator = np.random.default_rng([class_id, ordinal])
    grid = np.arange(28) - np.array([[7.0 + 1.5 * class_id], [14.0]]) - generator.normal(0, 2, (2, 1))
    size = generator.uniform(2, 6)
    image = 255 * np.exp(-(grid[0][:, None] ** 2 + grid[1][None] ** 2) / (2 * size**2))
    return image.astype(np.uint8)[None], (class_id + (ordinal % 4 == 3)) % 10, 0.2 + 0.7 * (ordinal % 4 != 3)
