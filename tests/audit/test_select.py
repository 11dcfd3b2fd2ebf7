"""[select] keeps the rarest of each class, and ``verify`` names a set that does not follow from the pool."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_run import quiet

from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.rarity.table import rarity_path, read_part
from rarefy.errors import ExhaustedError, OutputError, ShardError
from rarefy.manifest import Manifest
from rarefy.plan import SELECTED, shard_names
from rarefy.select import stage
from rarefy.select.stage import Selected, SelectOptions
from rarefy.shards.metadata import read_records
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store
from rarefy.stages import seal_run, select, verify_run

POOL = """
name = "chosen"
[model]
preset = "fashion-mnist-28"
[classes]
counts = { 0 = 6, 1 = 4, 4 = 2 }
[output]
shard_size = 9
[select]
from = 2
"""
KEPT = ["rare-000000", "rare-000001"]
Blob = Callable[[int, int], tuple[NDArray[np.uint8], int, float]]
Commit = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def small_reference(real_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the model's 10,000 real images."""
    monkeypatch.setattr(stage, "load_reference", lambda model, _: load_reference(model, str(real_folder)))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("rarefy.shards.verify.THREADS", 1)  # two readers of one file in memory share its position
    return Store(str(tmp_path / "out") if request.param == "local" else f"memory://select-{tmp_path.name}")


def pool_of(store: Store, commit_images: Commit, source: Blob, rule: str = "") -> Manifest:
    """A sealed pool."""
    manifest = commit_images(store, POOL + rule, source)
    seal_run(store)
    return manifest


def chosen(store: Store) -> list[tuple[str, bytes]]:
    """Key and pixels of every selected image, in order."""
    data = store.folder(SELECTED)
    return [(sample.key, sample.image.tobytes()) for name in KEPT for sample in read_samples(data, name)]


def make(store: Store, **options: bool) -> Selected:
    return select(store, SelectOptions(**options), quiet)


def pool_rows(store: Store, manifest: Manifest) -> Iterator[dict[str, object]]:
    """Metadata and rarity of every pool image, joined by key."""
    for name in shard_names(manifest):
        rarity = {row["key"]: row for row in read_part(store, name).table.to_pylist()}
        for record in read_records(store, name):
            yield vars(record) | rarity[record.key]


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ('exhausted = "keep"', lambda row: row["rarity"]),
        ('exhausted = "keep"\nby = "avgknn"', lambda row: row["avgknn"]),
        ('on_class = false\nby = "entropy"', lambda row: row["entropy"]),
        ('on_class = false\ninside = false\nby = "confidence"', lambda row: -row["confidence"]),
    ],
)
def test_the_rarest_images_are_kept(
    rule: str, value: Callable[[dict[str, object]], float], tmp_path: Path, commit_images: Commit, blob: Blob
) -> None:
    """By a plain sort of the pool."""
    store = Store(str(tmp_path / "out"))
    manifest = pool_of(store, commit_images, blob, rule)
    assert manifest.select is not None
    make(store)
    rows = (
        list(pool_rows(store, manifest))
        if manifest.select.needs_real_images
        else [vars(record) | {"inside": True} for name in shard_names(manifest) for record in read_records(store, name)]
    )
    expected = set[object]()
    for class_id, count in manifest.counts.items():
        own = [row for row in rows if row["class_id"] == class_id]
        allowed = [row for row in own if row["predicted_id"] == class_id or not manifest.select.on_class]
        allowed = [row for row in allowed if row["inside"] or not manifest.select.inside]
        assert len(own) == 2 * count <= 2 * len(allowed)
        expected |= {row["key"] for row in sorted(allowed, key=lambda row: (-value(row), row["key"]))[:count]}
    assert {key for key, _ in chosen(store)} == expected
    assert verify_run(store) == {}


def test_a_selected_set_is_the_pools_images_in_proportion(store: Store, commit_images: Commit, blob: Blob) -> None:
    manifest = pool_of(store, commit_images, blob)
    result = make(store)
    assert result.text() == "selected 12 of 24 images" and result.sealed.counts == {0: 6, 1: 4, 4: 2}
    pool = {sample.key: sample for name in shard_names(manifest) for sample in read_samples(store, name)}
    data = store.folder(SELECTED)
    for name in KEPT:
        for sample in read_samples(data, name):
            assert sample.image.tobytes() == pool[sample.key].image.tobytes()
            assert sample.info == pool[sample.key].info
    classes = [sample.class_id for sample in read_samples(data, KEPT[0])]
    assert all(abs(classes.count(class_id) - 9 * n / 12) <= 1 for class_id, n in manifest.counts.items())
    record = json.loads(data.read_bytes(stage.RECORD))
    assert (record["pool"], record["kept"], record["measure"]["k"]) == (24, 12, 3)
    assert "selected/shards/*.tar" in store.read_bytes("README.md").decode()
    assert "12 of 24 sampled images" in data.read_bytes("README.md").decode()
    run = read_run(store, 10_000)
    assert set(run.rows.key) == {key for key, _ in chosen(store)} and run.complete and not run.problems


def test_another_driver_and_another_time_give_the_same_bytes(
    store: Store, commit_images: Commit, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that is there is written again."""
    pool_of(store, commit_images, blob)
    make(store)
    data, names = store.folder(SELECTED), [f"shards/{name}.tar" for name in KEPT]
    names += [f"metadata/{name}.parquet" for name in KEPT]
    first = {name: data.read_bytes(name) for name in [*names, stage.RECORD, "state/rare-000000.json"]}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "commit_samples", lambda *_: pytest.fail("a committed shard is made again"))
        make(store)
    assert {name: data.read_bytes(name) for name in first} == first
    data.delete("state/rare-000001.json")  # interrupted before its commit
    data.delete("shards/rare-000001.tar")
    assert list(verify_run(store)) == ["selected/rare-000001"]
    make(store)
    assert {name: data.read_bytes(name) for name in first} == first and verify_run(store) == {}


def test_verify_names_a_set_that_does_not_follow_from_the_pool(
    tmp_path: Path, commit_images: Commit, blob: Blob
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = pool_of(store, commit_images, blob)
    assert verify_run(store) == {"selected/_SUCCESS": ["missing: the images are not selected yet; run select"]}
    make(store)
    data, expected = store.folder(SELECTED), chosen(store)
    # Another rule's choice, whole and sealed, in place of this one's.
    other = Store(str(tmp_path / "other"))
    pool_of(other, commit_images, blob, 'by = "avgknn"\ninside = false\non_class = false')
    make(other)
    for name in KEPT:
        for rel in (f"shards/{name}.tar", f"metadata/{name}.parquet", f"state/{name}.json"):
            data.write_bytes(rel, other.folder(SELECTED).read_bytes(rel))
    assert [name for name in verify_run(store) if "rare" in name] == [f"selected/{name}" for name in KEPT]
    make(store)
    assert verify_run(store) == {} and chosen(store) == expected
    first = next(iter(shard_names(manifest)))
    store.delete(rarity_path(first))
    assert verify_run(store) == {
        "selected": [f"cannot be compared with the pool: rarity/{first}.parquet: missing"],
    }
    make(store)
    data.write_bytes(stage.RECORD, b"{}")
    assert list(verify_run(store)) == ["selected/selection.json"]


def test_a_pool_that_was_made_again_is_selected_again(tmp_path: Path, commit_images: Commit, blob: Blob) -> None:
    """A rejected image that another machine rounds differently must not stay in the set."""
    store = Store(str(tmp_path / "out"))
    manifest = pool_of(store, commit_images, blob)
    make(store)
    before = chosen(store)
    for name in shard_names(manifest):
        for rel in (f"shards/{name}.tar", f"metadata/{name}.parquet", f"state/{name}.json"):
            store.delete(rel)

    def rounded_otherwise(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
        image, predicted, confidence = blob(class_id, ordinal)
        return image ^ 1, predicted, confidence

    pool_of(store, commit_images, rounded_otherwise)
    assert "selected" in verify_run(store)
    make(store)
    assert verify_run(store) == {} and [pixels for _, pixels in chosen(store)] != [pixels for _, pixels in before]


def test_a_class_with_too_few_acceptable_images_is_named(tmp_path: Path, commit_images: Commit, blob: Blob) -> None:
    store = Store(str(tmp_path / "out"))

    def off_class(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
        image, _, confidence = blob(class_id, ordinal)
        return image, 7 if class_id == 1 and ordinal > 2 else class_id, confidence

    manifest = pool_of(store, commit_images, off_class)
    message = r"in 1 of 3 classes: trouser \(3 of 8 sampled images, 4 wanted\); .*--keep-exhausted.*select\.from"
    with pytest.raises(ExhaustedError, match=message):
        make(store)
    assert not store.exists("selected/_SUCCESS")
    result = make(store, keep_exhausted=True)
    assert result.text() == "selected 12 of 24 images, 1 of them not acceptable to [select]: trouser 1"
    assert verify_run(store) == {}
    filled = [row for row in pool_rows(store, manifest) if row["class_id"] == 1 and row["predicted_id"] == 7]
    kept = {key for key, _ in chosen(store)}
    typical = min(filled, key=lambda row: row["rarity"])  # type: ignore[arg-type, return-value]
    assert [row["key"] for row in filled if row["key"] in kept] == [typical["key"]]


def test_what_select_refuses(tmp_path: Path, commit_images: Commit, blob: Blob) -> None:
    store = Store(str(tmp_path / "out"))
    commit_images(store, POOL, blob)
    with pytest.raises(OutputError, match="is not sealed; run seal first"):
        make(store)
    with pytest.raises(ShardError, match="run select first"):
        read_run(store, 10)
    other = Store(str(tmp_path / "other"))
    commit_images(other, POOL.partition("[select]")[0], blob)
    with pytest.raises(OutputError, match=r"is not a run whose manifest has \[select\]"):
        make(other)
