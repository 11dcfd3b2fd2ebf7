"""Damage of every kind in one shard, each of which ``verify`` names in one line."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarefy.errors import StorageError
from rarefy.manifest import parse_manifest
from rarefy.plan import run_spec
from rarefy.shards import check
from rarefy.shards.card import CardInfo
from rarefy.shards.check import check_shard
from rarefy.shards.marker import parse_marker
from rarefy.shards.seal import seal
from rarefy.shards.spec import RunSpec, ShardSpec
from rarefy.shards.store import Store
from rarefy.shards.verify import check_shards, verify
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png

Image = Callable[..., np.ndarray]
Header = Callable[[int], ShardHeader]
TAR, PARQUET, MARKER = "shards/rare-000001.tar", "metadata/rare-000001.parquet", "state/rare-000001.json"
FILES = (TAR, PARQUET, MARKER)


def problems(store: Store, spec: RunSpec) -> str:
    by_shard = verify(store, spec)
    assert list(by_shard) == ["rare-000001"]
    return "; ".join(by_shard["rare-000001"])


def swap_file(tar: bytes, name: str, content: bytes) -> bytes:
    """The tar with another content for one of its files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            data = source.extractfile(member).read()  # type: ignore[union-attr]  # every member is a file
            data = content if member.name == name else data
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out.getvalue()


def forge_marker(store: Store, **claims: object) -> None:
    """Another marker, with a right checksum."""
    marker = parse_marker(store.read_bytes(MARKER), MARKER)
    store.write_bytes(MARKER, replace(marker, **claims).to_json())  # type: ignore[arg-type]  # by name


def forge_tar(store: Store, data: bytes) -> None:
    """Another tar, with a marker that agrees."""
    store.write_bytes(TAR, data)
    hashes = {"tar_sha256": hashlib.sha256(data).hexdigest(), "tar_md5": hashlib.md5(data).hexdigest()}
    forge_marker(store, tar_bytes=len(data), **hashes)


def forge_parquet(store: Store, data: bytes) -> None:
    store.write_bytes(PARQUET, data)
    forge_marker(store, parquet_bytes=len(data), parquet_sha256=hashlib.sha256(data).hexdigest())


def forge_rows(store: Store, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    forge_parquet(store, sink.getvalue().to_pybytes())


def rows(store: Store) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read_bytes(PARQUET)))


def with_value(table: pa.Table, place: int, column: str, value: object) -> pa.Table:
    """The table with another value in one row."""
    field = table.schema.field(column)
    values = table[column].to_pylist()
    values[place] = value
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def test_a_whole_run_has_no_problems(run: Store, spec: RunSpec) -> None:
    assert verify(run, spec) == {}


@pytest.mark.parametrize("cut", [1, 2000, 9000])
def test_truncated_tar_is_reported(cut: int, run: Store, spec: RunSpec) -> None:
    data = run.read_bytes(TAR)
    run.write_bytes(TAR, data[:-cut])
    assert problems(run, spec) == f"{TAR} has {len(data) - cut} bytes, its marker says {len(data)}"


def test_swapped_image_is_reported_even_if_the_marker_agrees(run: Store, spec: RunSpec, make_image: Image) -> None:
    forged = swap_file(run.read_bytes(TAR), "00000100003.png", encode_png(make_image(9, 9)))
    run.write_bytes(TAR, forged)
    assert problems(run, spec).startswith(f"{TAR} has ")
    forge_tar(run, forged)
    assert problems(run, spec) == "sample 00000100003: its image does not have the sha256 that its row says"


@pytest.mark.parametrize(
    ("extension", "content", "message"),
    [
        ("cls", b"7", "its .cls is b'7', its row says class 1"),
        ("json", b"{", "its .json and its row differ in format (the .json cannot be parsed: "),
        ("json", b"[]", "its .json and its row differ in format (the .json cannot be parsed: not an object)"),
        ("json", b"[" * 100_000, "its .json and its row differ in format (the .json cannot be parsed: nested too deep"),
        ("json", None, "its .json and its row differ in format"),
    ],
)
def test_swapped_text_is_reported(
    extension: str, content: bytes | None, message: str, run: Store, spec: RunSpec
) -> None:
    name = f"00000100003.{extension}"
    with tarfile.open(fileobj=io.BytesIO(run.read_bytes(TAR))) as tar:
        same_values = tar.extractfile(name).read() + b" "  # type: ignore[union-attr]  # the member is a file
    forge_tar(run, swap_file(run.read_bytes(TAR), name, same_values if content is None else content))
    assert problems(run, spec).startswith(f"sample 00000100003: {message}")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("confidence", 0.5, "sample 00000100004: its .json and its row differ in confidence"),
        ("confidence", float("nan"), "sample 00000100004: confidence nan is not a finite number"),
        ("class_id", 1, "sample 00000100004: class_id is 1, the plan says 0"),
        ("seed", 7, f"sample 00000100004: seed is 7, the plan says {2**63 - 5}"),
        ("candidate", 1, f"sample 00000100004: seed is {2**63 - 5}, the plan says {2**63 - 5 - 1000}"),
        ("candidate", -1, "sample 00000100004: candidate is -1, which is not 0 or more"),
        ("manifest_digest", "e", f"sample 00000100004: manifest_digest is 'e', the plan says '{'d' * 64}'"),
        ("shard", 2, "key: '00000100004' of shard 2 index 4 is not '00000200004'"),
        ("index", 3, "key: '00000100004' of shard 1 index 3 is not '00000100003'"),
        ("key", "00000100003", "key: '00000100003' of shard 1 index 4 is not '00000100004'"),
    ],
)
def test_changed_row_is_reported_even_if_the_marker_agrees(
    column: str, value: object, message: str, run: Store, spec: RunSpec
) -> None:
    table = with_value(rows(run), 4, column, value)
    forge_rows(run, table)
    assert problems(run, spec) == message


def test_a_candidate_beyond_the_manifests_limit_is_counted(
    store: Store, spec: RunSpec, make_header: Header, make_samples: Callable[[int], list[Sample]]
) -> None:
    """A run may be given more candidates than its manifest allows."""
    samples = make_samples(0)
    late = replace(samples[2].record, candidate=9, seed=spec.shards[0].rows[2].seed(9))
    samples[2] = replace(samples[2], record=late)
    commit_shard(store, make_header(0), samples, seconds=1.0)
    checked = check_shard(store, spec.shards[0], spec.digest)
    assert (checked.problems, checked.beyond_limit, checked.not_accepted) == ((), 1, 1)


def with_other_weights(sample: Sample) -> Sample:
    return replace(sample, record=replace(sample.record, checkpoint_sha256="c" * 64))


@pytest.mark.parametrize(
    ("changed", "problem"), [(6, "other weights than those of rare-000000"), (3, "several weights")]
)
def test_images_of_other_weights_are_named(
    changed: int,
    problem: str,
    run: Store,
    spec: RunSpec,
    make_header: Header,
    make_samples: Callable[[int], list[Sample]],
) -> None:
    for rel in FILES:
        run.delete(rel)
    samples = make_samples(1)
    commit_shard(run, make_header(1), [*map(with_other_weights, samples[:changed]), *samples[changed:]], seconds=1.0)
    assert list(verify(run, spec)) == ["rare-000001"]
    assert problem in problems(run, spec)


def test_lost_row_is_reported(run: Store, spec: RunSpec) -> None:
    forge_rows(run, rows(run).slice(1))
    assert problems(run, spec) == "Parquet has 5 rows, the plan says 6"


def test_rows_of_another_manifest_are_reported(run: Store, spec: RunSpec) -> None:
    table = rows(run)
    forge_rows(run, table.replace_schema_metadata({"rarefy.manifest_digest": b"\xff"}))
    assert problems(run, spec).startswith("Parquet is for manifest '\ufffd', its marker says 'ddd")


@pytest.mark.parametrize("data", [b"", b"PAR1 no PAR1"])
def test_broken_parquet_is_reported(data: bytes, run: Store, spec: RunSpec) -> None:
    run.write_bytes(PARQUET, data)
    assert problems(run, spec).startswith(f"{PARQUET} has {len(data)} bytes, its marker says")
    forge_parquet(run, data)
    assert problems(run, spec).startswith(f"{PARQUET}: not a readable Parquet file")


@pytest.mark.parametrize("rel", [TAR, PARQUET])
def test_missing_file_is_named(rel: str, run: Store, spec: RunSpec) -> None:
    run.delete(rel)
    assert problems(run, spec) == f"{rel} is missing"


@pytest.mark.parametrize("rel", FILES)
@pytest.mark.parametrize("store", ["local"], indirect=True)  # object stores have no folders
def test_a_folder_in_a_files_place_is_named(rel: str, run: Store, spec: RunSpec) -> None:
    run.delete(rel)
    (Path(run.path) / rel).mkdir()
    assert problems(run, spec) == f"{rel} is not a file; move it elsewhere"


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"manifest_digest": "e" * 64}, f"its marker is for manifest {'e' * 64}, not {'d' * 64}"),
        ({"rows": 7, "counts": {"0": 7}}, "its marker says 7 samples, the plan says 6"),
        ({"counts": {"0": 6}}, "its marker says the class counts {'0': 6}, the plan says {'0': 3, '1': 3}"),
        ({"name": "rare-000002", "shard": 2}, "its marker is that of shard 2, rare-000002"),
        ({"name": "bare-000001"}, "its marker is that of shard 1, bare-000001"),
    ],
)
def test_marker_that_contradicts_the_plan_is_named(
    claims: dict[str, object], message: str, run: Store, spec: RunSpec
) -> None:
    forge_marker(run, **claims)
    assert problems(run, spec) == message


def test_md5_of_the_index_is_checked(run: Store, spec: RunSpec) -> None:
    forge_marker(run, tar_md5="0" * 32)
    assert problems(run, spec).startswith(f"{TAR} has md5 ")


def test_damaged_marker_is_named(run: Store, spec: RunSpec) -> None:
    run.write_bytes(MARKER, b'{"name": "rare-0')
    assert problems(run, spec).startswith("state/rare-000001.json: not JSON")
    run.write_bytes(MARKER, bytes(check.MARKER_BYTES + 1))
    assert problems(run, spec).startswith("state/rare-000001.json: not ")


def copy_shard(store: Store, source: str, target: str) -> None:
    for folder, ending in (("shards", "tar"), ("metadata", "parquet"), ("state", "json")):
        store.write_bytes(f"{folder}/{target}.{ending}", store.read_bytes(f"{folder}/{source}.{ending}"))


def test_a_shard_copied_over_another_is_named(run: Store, spec: RunSpec) -> None:
    copy_shard(run, "rare-000000", "rare-000001")
    assert problems(run, spec) == "its marker is that of shard 0, rare-000000"
    forge_marker(run, name="rare-000001", shard=1)
    first = "key is '00000000000', the plan says '00000100000'"
    assert problems(run, spec).startswith(f"sample 00000100000: {first}; sample 00000100000: shard is 0")
    assert problems(run, spec).endswith("; and 4 more problems")


def test_two_shards_swapped_whole_are_named(run: Store, spec: RunSpec) -> None:
    copy_shard(run, "rare-000000", "spare")
    copy_shard(run, "rare-000002", "rare-000000")
    copy_shard(run, "spare", "rare-000002")
    for folder, ending in (("shards", "tar"), ("metadata", "parquet"), ("state", "json")):
        run.delete(f"{folder}/spare.{ending}")
    assert list(verify(run, spec)) == ["rare-000000", "rare-000002"]


@pytest.mark.parametrize("rel", ["shards/rare-000003.tar", "shards/rare-1.tar", "shards/x", "metadata/rare-1.parquet"])
def test_foreign_files_are_named(rel: str, run: Store, spec: RunSpec) -> None:
    run.write_bytes(rel, b"")
    assert verify(run, spec) == {rel: ["not part of this plan; move it elsewhere"]}


def test_only_markers_are_foreign_among_the_drivers_files(run: Store, spec: RunSpec) -> None:
    for rel in ("state/drivers/a.json", "state/other.json", "state/rare-000003.json"):
        run.write_bytes(rel, b"")
    assert list(verify(run, spec)) == ["state/rare-000003.json"]


SEALED = "; seal writes it again"


@pytest.mark.parametrize(
    ("rel", "problem"),
    [
        ("index.json", "missing or unreadable, although the run is sealed"),
        ("metadata.json", "missing or unreadable, although the run is sealed"),
        ("README.md", "missing, although the run is sealed"),
    ],
)
def test_a_lost_file_of_a_sealed_run_is_named(
    rel: str, problem: str, run: Store, spec: RunSpec, card: CardInfo
) -> None:
    seal(run, spec, card)
    assert verify(run, spec) == {}
    run.delete(rel)
    assert verify(run, spec) == {rel: [problem + SEALED]}
    seal(run, spec, card)
    assert verify(run, spec) == {}


@pytest.mark.parametrize("rel", ["index.json", "metadata.json"])
@pytest.mark.parametrize("change", ["cut", "longer", "other", "empty"])
def test_a_damaged_index_is_named(rel: str, change: str, run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    data = run.read_bytes(rel)
    other = data.replace(b"rare-000001", b"rare-000009")
    run.write_bytes(rel, {"cut": data[:-1], "longer": data + b" ", "other": other, "empty": b""}[change])
    assert verify(run, spec) == {rel: [f"does not describe these shards{SEALED}"]}


def test_the_listings_columns_may_be_those_of_another_version(run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    data = run.read_bytes("metadata.json")
    run.write_bytes("metadata.json", data.replace(b"nat", b"bit"))
    assert verify(run, spec) == {}
    run.write_bytes("metadata.json", data.replace(b'"nat"', b'"nat'))
    assert list(verify(run, spec)) == ["metadata.json"]


def test_the_listing_of_an_earlier_version_is_checked_where_it_was(run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    run.write_bytes("metadata/_index.json", run.read_bytes("metadata.json"))
    run.delete("metadata.json")
    assert verify(run, spec) == {}
    run.write_bytes("metadata/_index.json", run.read_bytes("metadata/_index.json")[:-1])
    assert verify(run, spec) == {"metadata/_index.json": [f"does not describe these shards{SEALED}"]}
    seal(run, spec, card)
    assert verify(run, spec) == {}
    assert run.exists("metadata.json") and not run.exists("metadata/_index.json")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"manifest_digest": "d", "shards": 3, "samples": 18}'])
def test_a_damaged_success_is_named(data: bytes, run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    run.write_bytes("_SUCCESS", data)
    assert list(verify(run, spec)) == ["_SUCCESS"]


@pytest.mark.parametrize("rel", FILES)
def test_every_flipped_byte_is_reported(
    rel: str, spec: RunSpec, make_header: Header, make_sample: Callable[..., Sample]
) -> None:
    """Each byte of a shard of one sample."""
    store = Store(f"memory://flip-{uuid.uuid4().hex}")
    commit_shard(store, make_header(1), [make_sample(1, 0)], seconds=1.0)
    shard = replace(spec.shards[1], rows=spec.shards[1].rows[:1])
    assert check_shard(store, shard, spec.digest).problems == ()
    fs, path = fsspec.core.url_to_fs(f"{store.root}/{rel}")
    bytes_of_file = fs.store[path].getbuffer()
    for place in range(len(bytes_of_file)):
        bytes_of_file[place] ^= 0x41
        assert check_shard(store, shard, spec.digest).problems, f"byte {place}"
        bytes_of_file[place] ^= 0x41


SMALL = """
name = "small"
model.preset = "fashion-mnist-28"
classes.total = 40
output.shard_size = 2
accept.max_candidates = 3
"""


def planned_samples(spec: ShardSpec, digest: str, make_sample: Callable[..., Sample]) -> list[Sample]:
    """Samples that have the plan's keys, classes and seeds."""
    samples = []
    for row in spec.rows:
        sample = make_sample(spec.number, row.index, digest)
        record = replace(sample.record, class_id=row.class_id, seed=row.seed(0), index=row.index)
        samples.append(Sample(record, sample.png))
    return samples


def test_several_processes_find_what_one_finds(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    spec, store = run_spec(parse_manifest(SMALL, "small.toml")), Store(str(tmp_path))
    for shard in spec.shards:
        header = ShardHeader(shard.name, shard.number, SMALL, spec.digest, "attempt")
        commit_shard(store, header, planned_samples(shard, spec.digest, make_sample), seconds=1.0)
    store.write_bytes(TAR, b"damaged")
    store.delete("state/rare-000013.json")
    one, two = (list(check_shards(store, spec, workers)) for workers in (1, 2))
    assert one == two
    assert [checked.name for checked in one] == [shard.name for shard in spec.shards]
    assert [checked.name for checked in one if checked.problems] == ["rare-000001", "rare-000013"]


def test_processes_that_check_shards_do_not_load_torch() -> None:
    code = "import sys, rarefy.plan, rarefy.shards.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_large_file_is_read_in_parts(run: Store, spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(check, "HASH_BYTES", 700)
    assert verify(run, spec) == {}
    run.write_bytes(TAR, run.read_bytes(TAR)[:-1] + b"x")
    assert problems(run, spec).startswith(f"{TAR} has sha256 ")


def test_a_store_that_cannot_be_read_says_nothing_about_its_shards(
    run: Store, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(store: Store, rel: str) -> bytes:
        raise StorageError(f"out: {rel} is not readable at the moment")

    monkeypatch.setattr(Store, "read_or_none", fail)
    with pytest.raises(StorageError):
        verify(run, spec)


def test_a_success_that_cannot_be_read_at_the_moment_is_not_called_damaged(
    run: Store, spec: RunSpec, card: CardInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(run, spec, card)
    read = Store.read_bytes

    def fail(store: Store, rel: str) -> bytes:
        if rel == "_SUCCESS":
            raise StorageError("out: _SUCCESS is not readable at the moment")
        return read(store, rel)

    monkeypatch.setattr(Store, "read_bytes", fail)
    with pytest.raises(StorageError):
        verify(run, spec)
