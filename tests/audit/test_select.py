"""[select] keeps the rarest of each class, and ``verify`` names a set that does not follow from the pool."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from small_run import quiet

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.rarity.table import rarity_path, read_part
from rarefy.errors import ExhaustedError, OutputError, ShardError
from rarefy.manifest import Manifest
from rarefy.plan import RECORD, SELECTED, shard_names
from rarefy.select import choice, stage
from rarefy.select.choice import choose
from rarefy.select.stage import Selected, SelectOptions
from rarefy.shards.metadata import read_records, read_table
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store
from rarefy.stages import seal_run, select, verify_run
from rarefy.status import read_status

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


def test_a_selected_set_is_the_pools_images_in_proportion(
    store: Store, commit_images: Commit, blob: Blob, real_folder: Path
) -> None:
    manifest = pool_of(store, commit_images, blob)
    assert "sealed: yes, selected: no, audit: none" in read_status(store).text()
    result = make(store)
    assert "sealed: yes, selected: yes, audit: none" in read_status(store).text()
    assert result.text() == "selected 12 of 24 images" and result.sealed.counts == {0: 6, 1: 4, 4: 2}
    pool = {sample.key: sample for name in shard_names(manifest) for sample in read_samples(store, name)}
    data = store.folder(SELECTED)
    for name in KEPT:
        for sample in read_samples(data, name):
            assert sample.image.tobytes() == pool[sample.key].image.tobytes()
            assert sample.info == pool[sample.key].info
    classes = [sample.class_id for sample in read_samples(data, KEPT[0])]
    assert all(abs(classes.count(class_id) - 9 * n / 12) <= 1 for class_id, n in manifest.counts.items())
    record = json.loads(data.read_bytes(RECORD))
    assert (record["pool"], record["kept"], record["measure"]["k"]) == (24, 12, 3)
    reference = load_reference(manifest.preset, str(real_folder))
    assert reference is not None
    assert record["measure"]["reference_sha256"] == reference.of_classes(manifest.counts).real.sha256()
    assert "selected/shards/*.tar" in store.read_bytes("README.md").decode()
    assert "12 of 24 sampled images" in data.read_bytes("README.md").decode()
    run = read_run(store, 10_000)
    assert set(run.rows.key) == {key for key, _ in chosen(store)} and run.complete and not run.problems


def test_the_audit_describes_the_selected_set_and_leaves_the_pools_rarity(
    tmp_path: Path, commit_images: Commit, blob: Blob, real_folder: Path
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = pool_of(store, commit_images, blob)
    make(store)
    before = [store.read_bytes(rarity_path(name)) for name in shard_names(manifest)]
    (real_folder / "0" / "00.png").unlink()  # other real images than those of the choice
    result = run_audit(store, AuditOptions(reference=str(real_folder)), quiet)
    run = result["provenance"]
    assert (run["planned"], run["committed"], run["measured"], result["partial"]) == (12, 12, 12, False)
    assert [(row["class_name"], row["planned"], row["count"]) for row in result["per_class"]] == [
        ("t-shirt/top", 6, 6),
        ("trouser", 4, 4),
        ("coat", 2, 2),
    ]
    assert [store.read_bytes(rarity_path(name)) for name in shard_names(manifest)] == before
    assert verify_run(store) == {}


def test_another_driver_and_another_time_give_the_same_bytes(
    store: Store, commit_images: Commit, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that is there is written again."""
    pool_of(store, commit_images, blob)
    make(store)
    data, names = store.folder(SELECTED), [f"shards/{name}.tar" for name in KEPT]
    names += [f"metadata/{name}.parquet" for name in KEPT]
    first = {name: data.read_bytes(name) for name in [*names, RECORD, "state/rare-000000.json"]}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "commit_samples", lambda *_: pytest.fail("a committed shard is made again"))
        make(store)
    assert {name: data.read_bytes(name) for name in first} == first
    data.delete("state/rare-000001.json")  # interrupted before its commit
    data.delete("shards/rare-000001.tar")
    assert list(verify_run(store)) == ["selected/rare-000001"]
    make(store)
    assert {name: data.read_bytes(name) for name in first} == first and verify_run(store) == {}


def test_two_drivers_at_once_make_one_set(tmp_path: Path, commit_images: Commit, blob: Blob) -> None:
    store, alone = (Store(str(tmp_path / name)) for name in ("out", "alone"))
    for each in (store, alone):
        pool_of(each, commit_images, blob)
    make(alone)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(make, [store, store]))
    assert [result.sealed.samples for result in results] == [12, 12]
    assert verify_run(store) == {} and chosen(store) == chosen(alone)
    for name in KEPT:
        rel = f"selected/shards/{name}.tar"
        assert store.read_bytes(rel) == alone.read_bytes(rel)


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
    data.write_bytes(RECORD, b"{}")
    assert list(verify_run(store)) == ["selected/selection.json"]


BY_CONFIDENCE = 'by = "confidence"\non_class = false\ninside = false\n'  # needs no rarity


def test_a_pool_that_was_made_again_is_selected_again(tmp_path: Path, commit_images: Commit, blob: Blob) -> None:
    """An image that another machine rounds differently must not stay in the set, although its key is the same."""
    store = Store(str(tmp_path / "out"))
    manifest = pool_of(store, commit_images, blob, BY_CONFIDENCE)
    make(store)
    before = chosen(store)
    for name in shard_names(manifest):
        for rel in (f"shards/{name}.tar", f"metadata/{name}.parquet", f"state/{name}.json"):
            store.delete(rel)

    def rounded_otherwise(class_id: int, ordinal: int) -> tuple[NDArray[np.uint8], int, float]:
        image, predicted, confidence = blob(class_id, ordinal)
        return image ^ 1, predicted, confidence

    pool_of(store, commit_images, rounded_otherwise, BY_CONFIDENCE)
    problems = verify_run(store)
    assert list(problems) == [f"selected/{name}" for name in KEPT]
    assert "image_sha256 is " in problems["selected/rare-000000"][0]
    make(store)
    assert verify_run(store) == {}
    pool = {sample.key: sample.image for name in shard_names(manifest) for sample in read_samples(store, name)}
    assert chosen(store) == [(key, pool[key].tobytes()) for key, _ in before]


def test_an_image_that_accept_refused_is_not_acceptable(
    tmp_path: Path, commit_images: Commit, blob: Blob, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = pool_of(store, commit_images, blob, BY_CONFIDENCE)
    first = {int(key) for own in choose(store, manifest).keys.values() for key in own}

    def read_refused(path: Path) -> pa.Table:
        table = read_table(path)
        accepted = pa.array([int(key) not in first for key in table["key"].to_pylist()])
        return table.set_column(table.schema.get_field_index("accepted"), "accepted", accepted)

    monkeypatch.setattr(choice, "read_table", read_refused)
    assert not first & {int(key) for own in choose(store, manifest).keys.values() for key in own}


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
    assert "; 1 of them are not such images: they fill up classes" in store.read_bytes("selected/README.md").decode()
    assert read_run(store, 100).filled == 1
    assert make(store).filled == {"trouser": 1}  # resumed without the option: nothing is left to decide
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
