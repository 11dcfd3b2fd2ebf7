"""A tar that another attempt left is used if it is whole, and never if it is damaged or of another run."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rarefy.errors import ShardError
from rarefy.shards.adopt import records_in_tar, rows_agree
from rarefy.shards.metadata import SCHEMA, SampleRecord, parse_table, to_records, write_table
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard, encode_png, write_tar

DIGEST = "d" * 64
Make = Callable[..., Sample]


@pytest.fixture
def own(make_sample: Make) -> list[Sample]:
    return [make_sample(0, index) for index in range(3)]


def tar_of(samples: Sequence[Sample]) -> bytes:
    write_tar(stream := io.BytesIO(), samples)
    return stream.getvalue()


def records_of(samples: Sequence[Sample]) -> list[SampleRecord]:
    return [sample.record for sample in samples]


def changed(samples: Sequence[Sample], changes: Mapping[str, object]) -> list[Sample]:
    """The same samples with other values in the second row."""
    return [
        replace(sample, record=replace(sample.record, **changes)) if number == 1 else sample  # type: ignore[arg-type]
        for number, sample in enumerate(samples)
    ]


def redrawn(samples: Sequence[Sample], **changes: object) -> list[Sample]:
    png = encode_png(np.zeros((3, 4, 5), dtype=np.uint8))
    other = changed(samples, {"image_sha256": hashlib.sha256(png).hexdigest()} | changes)
    return [other[0], replace(other[1], png=png), other[2]]


def test_the_same_tar_and_one_of_another_machine_are_adopted(own: list[Sample]) -> None:
    assert records_in_tar(tar_of(own), records_of(own)) == records_of(own)
    near = changed(own, {"confidence": 0.433333, "margin": 0.12500001})
    assert records_in_tar(tar_of(near), records_of(own)) == records_of(near)
    far = redrawn(own, confidence=0.9, predicted_id=0, candidate=2, seed=5, accepted=False)
    assert records_in_tar(tar_of(far), records_of(own)) == records_of(far)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "00000000009"}, {"class_id": 0}, {"class_name": "x"}, {"steps": 5}, {"checkpoint_sha256": "9" * 64},
        {"manifest_digest": "e" * 64}, {"seed": 5}, {"image_sha256": "0" * 64}, {"confidence": 0.9},
        {"confidence": None}, {"width": 6}, {"entropy": "0.5"}, {"entropy": 10**400}, {"steps": True},
        {"guidance": None},
    ],
)  # fmt: skip
def test_a_tar_of_another_run_or_with_a_wrong_row_is_not(changes: dict[str, object], own: list[Sample]) -> None:
    assert records_in_tar(tar_of(changed(own, changes)), records_of(own)) is None


def test_a_tar_with_other_samples_is_not(own: list[Sample], make_sample: Make) -> None:
    more = [*own, make_sample(0, 3)]
    for samples in (own[:2], own[::-1], more, [*own[:2], make_sample(1, 2)], [own[0], *own], []):
        assert records_in_tar(tar_of(samples), records_of(own)) is None


def test_a_score_that_is_not_finite_is_not(own: list[Sample]) -> None:
    data = tar_of(own).replace(b'"entropy":0.5', b'"entropy":NaN')
    assert records_in_tar(data, records_of(own)) is None


def test_a_damaged_tar_is_not(own: list[Sample]) -> None:
    """Any flipped bit of an image or of a row that matters, and any truncation that loses a sample."""
    data, records = tar_of(own), records_of(own)
    end = data.rindex(own[-1].png) + len(own[-1].png)
    assert all(records_in_tar(data[:length], records) is None for length in range(0, end, 97))
    for position in range(0, end, 41):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        found = records_in_tar(bytes(flipped), records)
        # What remains are the tar's own fields and padding, and the last digits of scores.
        assert found is None or [replace(record, confidence=0.0) for record in found] == [
            replace(record, confidence=0.0) for record in records
        ]


def test_rows_agree_in_content_not_in_bytes(own: list[Sample]) -> None:
    records = records_of(own)
    write_table(stream := io.BytesIO(), records, "text", DIGEST)
    assert rows_agree(stream.getvalue(), records, DIGEST)
    write_table(other := io.BytesIO(), records, "text with a comment", DIGEST)
    assert other.getvalue() != stream.getvalue() and rows_agree(other.getvalue(), records, DIGEST)
    assert not rows_agree(stream.getvalue(), records, "e" * 64)
    assert not rows_agree(stream.getvalue(), records[:2], DIGEST)
    assert not rows_agree(stream.getvalue(), records_of(changed(own, {"confidence": 0.4333})), DIGEST)
    assert not rows_agree(b"PAR1", records, DIGEST)


def test_no_flipped_byte_of_a_parquet_file_escapes_as_another_error(own: list[Sample]) -> None:
    write_table(stream := io.BytesIO(), records_of(own), "text", DIGEST)
    data = stream.getvalue()
    for position in range(0, len(data), 23):
        flipped = bytearray(data)
        flipped[position] ^= 0xFF
        try:
            to_records(parse_table(io.BytesIO(flipped), "x.parquet"))
        except ShardError as error:
            assert str(error).startswith("x.parquet: ")


def test_two_attempts_write_equal_files(
    tmp_path: Path, make_header: Callable[[int], ShardHeader], own: list[Sample]
) -> None:
    stores = [Store(str(tmp_path / name)) for name in "ab"]
    first, second = (commit_shard(store, make_header(0), own, seconds=1.0) for store in stores)
    assert first.attempt != second.attempt and first.created_at is not None
    assert first.parquet_sha256 == second.parquet_sha256 and first.tar_sha256 == second.tar_sha256


def test_a_parquet_file_of_an_earlier_version_is_read(own: list[Sample]) -> None:
    """It has a column with the time of writing, before the last one."""
    table = pa.Table.from_pylist([vars(sample.record) for sample in own], schema=SCHEMA)
    times = pa.array([0, 1, 2], pa.timestamp("us", tz="UTC"))
    old = table.add_column(len(SCHEMA) - 1, "created_at", times)
    pq.write_table(old, stream := io.BytesIO())
    assert to_records(parse_table(io.BytesIO(stream.getvalue()), "old")) == records_of(own)
    pq.write_table(table.append_column("more", times), stream := io.BytesIO())
    with pytest.raises(ShardError, match=r"^old: columns"):
        parse_table(io.BytesIO(stream.getvalue()), "old")


def test_the_rows_in_tar_and_parquet_are_the_same(own: list[Sample], make_header: Callable[[int], ShardHeader]) -> None:
    """Of an attempt that adopts another machine's tar."""
    store = Store("memory://adopting")
    there = redrawn(own, confidence=0.7)
    store.write_bytes("shards/rare-000000.tar", tar_of(there))
    marker = commit_shard(store, make_header(0), own, seconds=1.0)
    assert marker.tar_sha256 == hashlib.sha256(tar_of(there)).hexdigest()
    rows = pq.read_table(pa.BufferReader(store.read_bytes("metadata/rare-000000.parquet"))).to_pylist()
    assert rows == [json.loads(sample.record.stable_json()) for sample in there]
