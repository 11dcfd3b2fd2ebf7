"""A finished run whose images say which they are, made without a model: for tests of what reads a data set.

Each image is grey and has the digits of its key in its first row. Scores follow from the key.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
from made_up_audit import make_result, write_rows
from numpy.typing import NDArray

from benchmarks.synthetic import synthetic_samples
from rarefy.audit.current import shards_sha256
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.rarity.table import Basis, Measure, RarityColumns, encode_part, place_part
from rarefy.audit.schema import METRICS_PATH, SAMPLES_PATH
from rarefy.manifest import Manifest, parse_manifest
from rarefy.plan import make_plan, shard_name
from rarefy.shards.claim import claim_output
from rarefy.shards.listing import iter_committed
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png
from rarefy.stages import seal_run

TEXT = """
name = "planted"
model.preset = "fashion-mnist-28"
sampler = {{ method = "ancestral", steps = 2 }}
classes.counts = {{ {counts} }}
output.shard_size = {shard_size}
"""


def planted_text(counts: dict[int, int], shard_size: int) -> str:
    return TEXT.format(counts=", ".join(f"{name} = {count}" for name, count in counts.items()), shard_size=shard_size)


def make_planted(store: Store, counts: dict[int, int], shard_size: int, more: str = "") -> Manifest:
    """Commit and seal a run with these images per class id. more: further lines of the manifest."""
    manifest = parse_manifest(planted_text(counts, shard_size) + more, "planted")
    claim_output(store, manifest.text, manifest.digest)
    for shard in range(make_plan(manifest).num_shards):
        commit_planted(store, manifest, shard)
    seal_run(store)
    return manifest


def commit_planted(store: Store, manifest: Manifest, shard: int) -> None:
    header = ShardHeader(shard_name(manifest.prefix, shard), shard, manifest.text, manifest.digest, "planted")
    commit_shard(store, header, [_planted(sample) for sample in synthetic_samples(manifest, shard)], 1.0)


def _planted(sample: Sample) -> Sample:
    record = sample.record
    png = encode_png(planted_image(record.key))
    values = {"confidence": planted_confidence(record.key), "accepted": is_accepted(record.key)}
    return Sample(replace(record, image_sha256=hashlib.sha256(png).hexdigest(), **values), png)


def planted_image(key: str) -> NDArray[np.uint8]:
    """(1, 28, 28)"""
    pixels = np.zeros((1, 28, 28), np.uint8)
    pixels[0, 0, : len(key)] = [int(digit) for digit in key]
    return pixels


def key_of(pixels: NDArray[np.uint8]) -> str:
    """The key of a planted image (1, 28, 28)."""
    return "".join(str(digit) for digit in pixels[0, 0, :11].tolist())


def planted_confidence(key: str) -> float:
    return (7 * int(key[-5:]) + 3 * int(key[:-5])) % 20 / 20


def is_accepted(key: str) -> bool:
    return int(key) % 5 != 4


def write_planted_rarity(store: Store, manifest: Manifest) -> None:
    """OUT/rarity of all shards: an image's rarity is its key as a number."""
    names = (shard_name(manifest.prefix, shard) for shard in range(make_plan(manifest).num_shards))
    for marker in iter_committed(store, names, manifest.digest):
        records = read_records(store, marker.name)
        values = np.array([int(record.key) for record in records], np.float32)
        columns = RarityColumns(
            key=[record.key for record in records],
            class_id=np.array([record.class_id for record in records], np.int64),
            rarity=values,
            inside=values % 2 == 0,
            avgknn=values + 1,
            nearest_distance=values + 2,
            nearest_real=[f"real-{record.key}" for record in records],
        )
        basis = Basis(Measure("extractor", "layer", "a" * 64, "none", 3, "b" * 64), marker.tar_sha256)
        place_part(store, marker.name, encode_part(columns, basis), basis)


def write_planted_audit(store: Store, keys: list[str]) -> None:
    """An audit that measured these images: an image's copy ratio is its index in the shard."""
    write_rows(store, SAMPLES_PATH, [{"key": key, "copy_ratio": float(int(key[-5:]))} for key in keys])
    result = make_result()
    result["provenance"]["shards_sha256"] = shards_sha256(store)
    assert read_manifest(store).name == "planted"
    store.write_bytes(METRICS_PATH, json.dumps(result).encode())
