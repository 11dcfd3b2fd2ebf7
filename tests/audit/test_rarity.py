"""The rarity of every image: values by brute force, resumption, and what makes a file stale."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from small_run import MANIFEST, quiet

from rarefy.audit.features.extractors import extract_outputs, load_extractor
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.metrics.neighbors import build_manifold
from rarefy.audit.rarity import compute
from rarefy.audit.rarity.compute import Means, RealSide, write_rarity
from rarefy.audit.rarity.table import rarity_path, read_part
from rarefy.errors import ShardError
from rarefy.manifest import Manifest
from rarefy.plan import shard_names
from rarefy.shards.listing import iter_committed
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store

K = 5
Commit = Callable[[Store, str], Manifest]


Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]


def noise(seed: int) -> NDArray[np.uint8]:
    """An image outside the real data."""
    return np.random.default_rng(seed).integers(0, 256, (1, 28, 28), dtype=np.uint8)


def measure(store: Store, manifest: Manifest, folder: Path) -> tuple[list[str], RealSide]:
    """Write the rarity against a folder of real images; returns the problems and the real side."""
    reference = load_reference(manifest.preset, str(folder))
    assert reference is not None
    extractor = load_extractor()
    features = extract_outputs(reference.real.images, extractor)
    real = RealSide(reference.real, reference.real.sha256(), lambda: build_manifold(features, K))
    markers = iter_committed(store, shard_names(manifest), manifest.digest)
    problems = write_rarity(store, markers, manifest.total, real, Means(extractor, K, "cpu", None), quiet)
    return [problem.where for problem in problems], real


def distances(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(first[:, None].astype(float) - second[None].astype(float), axis=2))


def test_every_value_is_that_of_a_brute_force_search(
    tmp_path: Path, commit_images: Callable[..., Manifest], blob: Blob, real_folder: Path
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = commit_images(store, MANIFEST, lambda *at: blob(*at) if at[1] % 4 else (noise(at[1]), 0, 0.5))
    problems, real = measure(store, manifest, real_folder)
    assert problems == []
    among = distances(real.manifold().features, real.manifold().features)
    np.fill_diagonal(among, np.inf)
    radius = np.sort(among, axis=1)[:, K - 1]
    outside = 0
    for name in shard_names(manifest):
        samples, table = list(read_samples(store, name)), read_part(store, name).table
        features = extract_outputs(np.stack([sample.image for sample in samples]), load_extractor())
        gaps = distances(features, real.manifold().features)
        balls = np.where(gaps <= radius, radius, np.inf).min(axis=1)
        inside = np.isfinite(balls)
        assert table["key"].to_pylist() == [sample.key for sample in samples]
        assert table["class_id"].to_pylist() == [sample.class_id for sample in samples]
        assert table["inside"].to_pylist() == inside.tolist()
        np.testing.assert_allclose(table["rarity"], np.where(inside, balls, gaps.min(axis=1)), rtol=1e-5)
        np.testing.assert_allclose(table["avgknn"], np.sort(gaps, axis=1)[:, :K].mean(axis=1), rtol=1e-5)
        assert table["nearest_real"].to_pylist() == [real.images.keys[place] for place in gaps.argmin(axis=1)]
        outside += int((~inside).sum())
    assert 0 < outside < manifest.total


def test_bytes_depend_on_nothing_but_the_images(tmp_path: Path, commit_run: Commit, real_folder: Path) -> None:
    """Not on which shards are measured together, nor on an interruption."""
    stores = [Store(str(tmp_path / name)) for name in ("one", "other")]
    manifest, _ = [commit_run(store, MANIFEST) for store in stores]
    names = list(shard_names(manifest))
    measure(stores[0], manifest, real_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "GROUP_BYTES", 1)
        measure(stores[1], manifest, real_folder)
    first, second = ([store.read_bytes(rarity_path(name)) for name in names] for store in stores)
    assert first == second
    stores[1].delete(rarity_path(names[1]))
    measure(stores[1], manifest, real_folder)
    assert stores[1].read_bytes(rarity_path(names[1])) == first[1]


def test_finished_shards_are_not_measured_again(
    tmp_path: Path, commit_run: Commit, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(f"memory://rarity-{tmp_path.name}")
    manifest = commit_run(store, MANIFEST)
    names = list(shard_names(manifest))
    measure(store, manifest, real_folder)
    read: list[str] = []
    monkeypatch.setattr(compute, "read_samples", lambda store, name: read.append(name) or read_samples(store, name))
    measure(store, manifest, real_folder)
    assert read == []
    store.write_bytes(rarity_path(names[0]), b"damaged")
    measure(store, manifest, real_folder)
    assert read == names[:1] and len(read_part(store, names[0]).table)
    whole = store.read_bytes(rarity_path(names[1]))
    place = whole.index(b"\x28\xb5\x2f\xfd") + 12  # in the first column's compressed values
    store.write_bytes(rarity_path(names[1]), whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ShardError, match=r"not a readable table of rarity \(.*CRC checksum"):
        read_part(store, names[1])
    measure(store, manifest, real_folder)
    assert read.pop() == names[1] and store.read_bytes(rarity_path(names[1])) == whole
    before = store.read_bytes(rarity_path(names[1]))
    (real_folder / "0" / "00.png").unlink()  # other real images
    measure(store, manifest, real_folder)
    assert read == [names[0], *names] and store.read_bytes(rarity_path(names[1])) != before


def test_a_damaged_shard_is_named_and_the_others_are_measured(
    tmp_path: Path, commit_run: Commit, real_folder: Path
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = commit_run(store, MANIFEST)
    names = list(shard_names(manifest))
    path = tmp_path / "out" / "shards" / f"{names[1]}.tar"
    path.write_bytes(path.read_bytes()[:2000])
    problems, _ = measure(store, manifest, real_folder)
    assert problems == [rarity_path(names[1])]
    assert [store.exists(rarity_path(name)) for name in names] == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_file_that_is_no_table_of_rarity_is_refused(content: bytes | None) -> None:
    store = Store("memory://rarity-bad")
    if content is None:
        stream = io.BytesIO()
        pq.write_table(pa.table({"key": ["0"]}), stream)
        content = stream.getvalue()
    store.write_bytes(rarity_path("rare-000000"), content)
    with pytest.raises(ShardError, match=r"rarity/rare-000000\.parquet: not a "):
        read_part(store, "rare-000000")
    with pytest.raises(ShardError, match=r"rarity/rare-000001\.parquet: missing"):
        read_part(store, "rare-000001")
