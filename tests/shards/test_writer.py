from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rarefy.errors import ShardError
from rarefy.shards.check import check_shard
from rarefy.shards.listing import committed_numbers, iter_committed
from rarefy.shards.marker import parse_marker, read_marker
from rarefy.shards.metadata import (
    OF_CLASSIFIER,
    SCHEMA,
    SCORES,
    SampleRecord,
    check_record,
    read_records,
    read_table,
    to_records,
    write_table,
)
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png

Plan = tuple[str, str, list[str], dict[int, int]]
Header = Callable[[int], ShardHeader]
Samples = Callable[[int], list[Sample]]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel(channels: int, make_image: Callable[..., np.ndarray]) -> None:
    image = make_image(7, 1, channels)
    data = encode_png(image)
    assert data == encode_png(image.copy())
    pixels = np.array(Image.open(io.BytesIO(data)))
    expected = image[0] if channels == 1 else np.moveaxis(image, 0, -1)
    np.testing.assert_array_equal(pixels, expected)


def test_tar_bytes_depend_only_on_the_images(tmp_path: Path, make_header: Header, make_samples: Samples) -> None:
    first, second = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    one = commit_shard(first, make_header(0), make_samples(0), seconds=1.0)
    # Another attempt, at another time, whose samples arrive in another order.
    two = commit_shard(second, make_header(0), make_samples(0)[::-1], seconds=9.0)
    assert first.read_bytes("shards/rare-000000.tar") == second.read_bytes("shards/rare-000000.tar")
    assert (one.tar_sha256, one.tar_md5) == (two.tar_sha256, two.tar_md5)
    assert one.attempt != two.attempt


def test_tar_layout(run: Store, make_sample: Callable[..., Sample]) -> None:
    with tarfile.open(fileobj=io.BytesIO(run.read_bytes("shards/rare-000001.tar"))) as tar:
        members = tar.getmembers()
        text = tar.extractfile("00000100002.json").read()  # type: ignore[union-attr]  # the member is a file
    info = json.loads(text)
    assert text == json.dumps(info, sort_keys=True, separators=(",", ":")).encode(), "canonical JSON"
    names = [member.name for member in members]
    assert names[:4] == ["00000100000.cls", "00000100000.json", "00000100000.png", "00000100001.cls"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "rarefy", "rarefy")}
    record = make_sample(1, 2).record
    assert info["confidence"] == record.confidence and info["seed"] == 2**63 - 3
    assert set(info) == set(SCHEMA.names)


def test_parquet_contains_the_records_units_and_manifest(run: Store, plan: Plan, make_samples: Samples) -> None:
    text, digest, names, _ = plan
    actual = read_records(run, names[2])
    expected = [sample.record for sample in make_samples(2)]
    assert actual == expected
    schema = pq.read_schema(pa.BufferReader(run.read_bytes(f"metadata/{names[2]}.parquet")))
    assert schema.metadata[b"rarefy.manifest"].decode() == text
    assert schema.metadata[b"rarefy.manifest_digest"].decode() == digest
    assert schema.field("entropy").metadata[b"unit"] == b"nat"
    assert tuple(SampleRecord.__dataclass_fields__) == tuple(SCHEMA.names)


def test_any_text_and_number_comes_back(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    records = [
        replace(make_sample(0, index).record, class_name=name, confidence=number, margin=1 / 3 - number)
        for index, (name, number) in enumerate(
            [('a "b" \\\n\tc', 5e-324), ("Ärmel, 袖, 👟", 1 - 2**-53), ("", 0.1 + 0.2)]
        )
    ]
    write_table(tmp_path / "rows.parquet", records, "text", "digest")
    assert to_records(read_table(tmp_path / "rows.parquet")) == records


def test_writing_does_not_import_pandas(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """pyarrow would import it in each actor to convert Python objects."""
    (tmp_path / "record").write_bytes(pickle.dumps(make_sample(0, 0).record))
    code = (
        "import pickle, sys; from pathlib import Path; from rarefy.shards.metadata import write_table; "
        "folder = Path(sys.argv[1]); record = pickle.loads((folder / 'record').read_bytes()); "
        "write_table(folder / 'rows.parquet', [record], '', ''); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[2]).returncode == 0


def test_marker_describes_the_files(run: Store, plan: Plan) -> None:
    marker = read_marker(run, "rare-000001")
    assert marker is not None
    tar, parquet = run.read_bytes("shards/rare-000001.tar"), run.read_bytes("metadata/rare-000001.parquet")
    assert marker.tar_sha256 == hashlib.sha256(tar).hexdigest()
    assert marker.tar_md5 == hashlib.md5(tar).hexdigest()
    assert marker.parquet_sha256 == hashlib.sha256(parquet).hexdigest()
    assert (marker.tar_bytes, marker.parquet_bytes) == (len(tar), len(parquet))
    assert (marker.rows, marker.counts) == (6, {"0": 3, "1": 3})
    assert (marker.seconds, marker.images_per_second) == (2.0, 3.0)
    assert parse_marker(marker.to_json(), "x") == marker
    assert [found.name for found in iter_committed(run, plan[2], plan[1])] == plan[2]
    assert list(iter_committed(run, plan[2], "e" * 64)) == []
    with pytest.raises(ShardError, match="x: not a commit marker"):
        parse_marker(b'{"name": "rare"}', "x")


def test_the_first_commit_wins(
    run: Store, plan: Plan, spec: RunSpec, make_header: Header, make_sample: Callable[..., Sample]
) -> None:
    before = run.read_bytes("shards/rare-000000.tar")
    # A late attempt on another device has other pixels for the same keys, but a sealed shard must not change.
    late = [make_sample(0, index, channels=1) for index in range(6)]
    marker = commit_shard(run, make_header(0), late, seconds=1.0)
    assert marker == read_marker(run, "rare-000000")
    assert run.read_bytes("shards/rare-000000.tar") == before
    assert check_shard(run, spec.shards[0], spec.digest).problems == ()


def test_a_lost_tar_is_committed_again(
    run: Store, plan: Plan, spec: RunSpec, make_header: Header, make_samples: Samples
) -> None:
    run.delete("shards/rare-000000.tar")
    run.write_bytes("_SUCCESS", b"{}")
    commit_shard(run, make_header(0), make_samples(0), seconds=1.0)
    assert check_shard(run, spec.shards[0], spec.digest).problems == ()
    assert not run.exists("_SUCCESS"), "the run did not stay complete"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "00000000009"}, "00000000009"),
        ({"confidence": float("nan")}, "confidence nan"),
        ({"shard": 1, "key": "00000100001"}, "another shard"),
        ({"manifest_digest": "e" * 64}, "another shard or manifest"),
        ({"image_sha256": "0" * 64}, "another image"),
        ({"index": 0, "key": "00000000000"}, "00000000000 occurs 2 times"),
    ],
)
def test_samples_that_do_not_belong_together_are_refused(
    change: dict[str, object], message: str, store: Store, make_header: Header, make_samples: Samples
) -> None:
    samples = make_samples(0)
    samples[1] = replace(samples[1], record=replace(samples[1].record, **change))  # type: ignore[arg-type]  # by name
    with pytest.raises(ShardError, match=message):
        commit_shard(store, make_header(0), samples, seconds=1.0)
    assert store.list() == []


DIE = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]  # tests/shards and tests
import conftest
from rarefy.shards import claim, store, writer

link = os.link
header = writer.ShardHeader("rare-000000", 0, conftest.TEXT, conftest.DIGEST, "dies")

def die(root, last):
    named = []

    def die_at(source, target):
        if len(named) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        named.append(target)
        link(source, target)

    claim.claim_output(store.Store(root), "text", conftest.DIGEST)
    os.link = die_at
    writer.commit_shard(store.Store(root), header, conftest.shard_samples(0), 1.0)

for last, root in enumerate(sys.argv[2:]):
    child = os.fork()
    if not child:
        die(root, last)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Outputs of attempts that were killed when none, one or two of tar, Parquet file and marker had their names."""
    outputs = [tmp_path_factory.mktemp("killed") for _ in range(3)]
    here = Path(__file__).parent
    command = [sys.executable, "-c", DIE, str(here), *map(str, outputs)]
    assert subprocess.run(command, check=False, cwd=here.parents[1]).returncode == 0
    return outputs


@pytest.mark.parametrize(
    ("named", "present"), [(0, []), (1, ["shards/rare-000000.tar"]), (2, ["metadata/rare-000000.parquet"])]
)
def test_killed_attempt_commits_nothing_and_is_repeated(
    named: int,
    present: list[str],
    killed: list[Path],
    spec: RunSpec,
    make_header: Header,
    make_samples: Samples,
) -> None:
    digest, store = spec.digest, Store(str(killed[named]))
    assert all(store.exists(rel) for rel in present)
    assert store.exists("shards/rare-000000.tar") == (named > 0)
    assert committed_numbers(store, "rare") == set()
    assert check_shard(store, spec.shards[0], digest).problems == ("not committed (no marker)",)
    commit_shard(store, make_header(0), make_samples(0), seconds=1.0)
    assert check_shard(store, spec.shards[0], digest).problems == ()
    assert len(list(killed[named].rglob(".*.tmp"))) == 1


def test_files_of_earlier_versions_can_still_be_read(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """Before models without a classifier, no column could be null."""
    record = make_sample(0, 1).record
    old = pa.schema([field.with_nullable(False) for field in SCHEMA], metadata={"rarefy.manifest_digest": "d"})
    table = pa.Table.from_pylist([vars(record)], schema=old)
    pq.write_table(table, tmp_path / "old.parquet")
    assert not pq.read_schema(tmp_path / "old.parquet").field("confidence").nullable
    read = read_table(tmp_path / "old.parquet")
    assert to_records(read) == [record]
    assert read.schema.metadata == {b"rarefy.manifest_digest": b"d"}
    write_table(tmp_path / "new.parquet", [record], "", "d")
    assert len(pa.concat_tables([read, read_table(tmp_path / "new.parquet")])) == 2
    other = table.set_column(table.schema.get_field_index("margin"), "margin", pa.array(["x"]))
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(ShardError, match="not those of the schema"):
        read_table(tmp_path / "other.parquet")


def test_scores_are_all_there_or_none(make_sample: Callable[..., Sample]) -> None:
    record = make_sample(0, 1).record
    none = dict.fromkeys(OF_CLASSIFIER)
    check_record(replace(record, **none))
    assert json.loads(replace(record, **none).stable_json())["confidence"] is None
    for name in SCORES:
        with pytest.raises(ShardError, match=f"{name} None is not a finite number"):
            check_record(replace(record, **{name: None}))
