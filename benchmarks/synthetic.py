"""Shards of noise that pass verify and seal, made without a model: ``python -m benchmarks.synthetic OUT``.

They come from the product's own plan and writers, but are written straight to their names, without fsync, so that
100,000 of them take minutes. For benchmarks and tests only.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np

from rarefy.manifest import Manifest, parse_manifest
from rarefy.plan import Slot, make_plan, sample_seed, shard_name
from rarefy.shards.claim import claim_output
from rarefy.shards.marker import Marker, hash_file, marker_path
from rarefy.shards.metadata import SampleRecord, parquet_path, sample_key, tar_path, write_table
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png, make_marker, write_tar

CHUNK = 500  # shards per task of a process
WEIGHTS = "a" * 64, "b" * 64
TEXT = """
name = "synthetic"
model.preset = "fashion-mnist-28"
sampler = {{ method = "ancestral", steps = 2 }}
classes.total = {images}
output.shard_size = {rows}
"""


def synthetic_manifest(shards: int, rows: int = 1) -> Manifest:
    """A manifest of ``shards`` shards with ``rows`` images each, 28 x 28 grey, in ten classes."""
    return parse_manifest(TEXT.format(images=shards * rows, rows=rows), "synthetic")


def synthetic_samples(manifest: Manifest, shard: int) -> list[Sample]:
    """The planned rows of one shard. An image is noise from its seed."""
    return [_sample(manifest, shard, slot) for slot in make_plan(manifest).shard(shard).slots]


def commit_synthetic(store: Store, manifest: Manifest, shard: int, attempt: str) -> Marker:
    """Commit one shard as an actor does."""
    return commit_shard(store, _header(manifest, shard, attempt), synthetic_samples(manifest, shard), seconds=1.0)


def write_shards(root: Path, manifest: Manifest, shards: Sequence[int], processes: int = 2) -> None:
    """Claim ``root``, commit the first shard properly, and write the other shards straight to their names."""
    store = Store(str(root))
    claim_output(store, manifest.text, manifest.digest)
    if not shards:
        return
    commit_synthetic(store, manifest, shards[0], "synthetic")
    chunks = [shards[start : start + CHUNK] for start in range(1, len(shards), CHUNK)]
    if processes == 1 or len(chunks) < 2:
        for chunk in chunks:
            _write_chunk(root, manifest.text, chunk)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write_chunk, repeat(root), repeat(manifest.text), chunks))


def write_markers(root: Path, manifest: Manifest, shards: Sequence[int]) -> None:
    """Only the markers: enough for a driver, which reads nothing else. The first shard is whole."""
    store = Store(str(root))
    claim_output(store, manifest.text, manifest.digest)
    model = commit_synthetic(store, manifest, shards[0], "synthetic")
    for shard in shards[1:]:
        write_marker(root, named(model, manifest, shard))


def write_marker(root: Path, marker: Marker) -> None:
    (root / marker_path(marker.name)).write_bytes(marker.to_json())


def named(marker: Marker, manifest: Manifest, shard: int) -> Marker:
    """The marker of another shard with the same content."""
    return replace(marker, name=shard_name(manifest.prefix, shard), shard=shard)


def _write_chunk(root: Path, text: str, shards: Sequence[int]) -> None:
    manifest = parse_manifest(text, "synthetic")
    for shard in shards:
        header, samples = _header(manifest, shard, "synthetic"), synthetic_samples(manifest, shard)
        records = [sample.record for sample in samples]
        tar, parquet = root / tar_path(header.name), root / parquet_path(header.name)
        with tar.open("wb") as stream:
            write_tar(stream, samples)
        write_table(parquet, records, manifest.text, manifest.digest)
        write_marker(root, make_marker(header, records, 1.0, (hash_file(tar), hash_file(parquet))))


def _header(manifest: Manifest, shard: int, attempt: str) -> ShardHeader:
    return ShardHeader(shard_name(manifest.prefix, shard), shard, manifest.text, manifest.digest, attempt)


def _sample(manifest: Manifest, shard: int, slot: Slot) -> Sample:
    seed, size = sample_seed(manifest.seed, slot.class_id, slot.class_index, 0), manifest.preset.image_size
    pixels = np.frombuffer(hashlib.shake_128(seed.to_bytes(8, "big")).digest(size * size), np.uint8)
    png = encode_png(pixels.reshape(1, size, size))
    record = SampleRecord(
        key=sample_key(shard, slot.index),
        shard=shard,
        index=slot.index,
        class_id=slot.class_id,
        class_name=manifest.preset.class_name(slot.class_id),
        predicted_id=slot.class_id,
        confidence=0.5,
        entropy=1.0,
        entropy_normalized=0.5,
        margin=0.25,
        seed=seed,
        candidate=0,
        guidance="",
        steps=2,
        checkpoint_sha256=WEIGHTS[0],
        classifier_sha256=WEIGHTS[1],
        manifest_digest=manifest.digest,
        image_sha256=hashlib.sha256(png).hexdigest(),
        width=size,
        height=size,
        accepted=True,
    )
    return Sample(record, png)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new local folder")
    parser.add_argument("--shards", type=int, default=1000, help="default 1000")
    parser.add_argument("--rows", type=int, default=1, help="images per shard (default 1)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one per core")
    options = parser.parse_args(argv)
    manifest = synthetic_manifest(options.shards, options.rows)
    write_shards(options.out, manifest, range(options.shards), options.processes)
    print(f"{options.shards:,} shards of {options.rows} images in {options.out}")


if __name__ == "__main__":
    main()
