"""Readers of damaged files: an error that names the file, never a crash, a hang or memory for what it only claims."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.errors import ShardError
from rarefy.shards import metadata
from rarefy.shards.card import CardInfo
from rarefy.shards.index import INDEX, LISTING
from rarefy.shards.metadata import parse_table, to_records, write_table
from rarefy.shards.reader import BLOCK, decode_image, json_object, tar_samples
from rarefy.shards.seal import seal
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.verify import verify
from rarefy.shards.writer import Sample, encode_png, write_tar

Samples = Callable[[int], list[Sample]]
Edits = list[tuple[float, int, bytes]]
EXTREME = (b"\xff" * 8, b"\x7f\xff\xff\xff", bytes(8), b"\x80\x80\x80\x80\x01", b"77777777777\0")
# Places are fractions of the file, so that all of it is reached whatever its size.
PLACES, CONTENTS = st.floats(0, 1, exclude_max=True), st.binary(max_size=12) | st.sampled_from(EXTREME)
EDITS = st.lists(st.tuples(PLACES, st.integers(0, 40), CONTENTS), min_size=1, max_size=5)
few = settings(max_examples=80, deadline=None, derandomize=True, database=None)


def edited(data: bytes, edits: Edits) -> bytes:
    """The data with some of its bytes replaced, removed or added."""
    for place, removed, added in edits:
        start = int(place * len(data))
        data = data[:start] + added + data[start + removed :]
    return data


def tar_of(samples: list[Sample]) -> bytes:
    stream = io.BytesIO()
    write_tar(stream, samples)
    return stream.getvalue()


def parquet_of(samples: list[Sample]) -> bytes:
    stream = io.BytesIO()
    write_table(stream, [sample.record for sample in samples], "text", "d" * 64)
    return stream.getvalue()


def read_tar(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    return list(tar_samples(io.BytesIO(data), "rare-000000"))


def test_damaged_tars(make_samples: Samples) -> None:
    tar = tar_of(make_samples(0))

    @few
    @given(EDITS)
    def damage(edits: Edits) -> None:
        try:
            found = read_tar(edited(tar, edits))
        except ShardError as error:
            assert str(error).startswith("rare-000000: ")
        else:
            assert all(set(fields) == {"png", "cls", "json"} for _, fields in found)

    damage()


def test_damaged_parquet_files(make_samples: Samples) -> None:
    parquet = parquet_of(make_samples(0))

    @few
    @given(EDITS)
    def damage(edits: Edits) -> None:
        try:
            records = to_records(parse_table(io.BytesIO(edited(parquet, edits)), "rare-000000.parquet"))
        except ShardError as error:
            assert str(error).startswith("rare-000000.parquet: ")
        else:
            assert all(isinstance(record.key, str) for record in records)

    damage()


def test_damaged_images(make_samples: Samples) -> None:
    png = make_samples(0)[1].png

    @few
    @given(EDITS)
    def damage(edits: Edits) -> None:
        try:
            image = decode_image(edited(png, edits))
        except (OSError, ValueError):
            return
        assert image.ndim == 3

    damage()


@pytest.mark.parametrize("store", ["memory"], indirect=True)
@pytest.mark.parametrize("rel", [INDEX, LISTING])
def test_damaged_indices(rel: str, run: Store, spec: RunSpec, card: CardInfo) -> None:
    seal(run, spec, card)
    whole = run.read_bytes(rel)

    @settings(few, max_examples=20)
    @given(EDITS)
    def damage(edits: Edits) -> None:
        data = edited(whole, edits)
        run.write_bytes(rel, data)
        problems = verify(run, spec)
        unchanged = data == whole or (rel == LISTING and data[-3500:] == whole[-3500:])  # the columns may differ
        assert set(problems) <= {rel} and (problems or unchanged)

    damage()


def test_a_tar_that_claims_terabytes_takes_no_memory(make_samples: Samples) -> None:
    header = tarfile.TarInfo("00000000000.png")
    header.size = 1 << 32
    with pytest.raises(ShardError, match=r"damaged after sample none \(00000000000\.png has 4,294,967,296 bytes, more"):
        read_tar(header.tobuf(tarfile.USTAR_FORMAT) + bytes(BLOCK))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE, tarfile.SYMTYPE])
def test_a_tars_extensions_are_refused(kind: bytes, make_samples: Samples) -> None:
    """Python's tarfile would believe the sizes that they claim."""
    header = tarfile.TarInfo("00000000000.png")
    header.type = kind
    with pytest.raises(ShardError, match="not the header of a plain file"):
        read_tar(header.tobuf(tarfile.USTAR_FORMAT) + tar_of(make_samples(0)))


def test_a_compressed_tar_is_refused(make_samples: Samples) -> None:
    with pytest.raises(ShardError, match="not the header of a plain file"):
        read_tar(gzip.compress(tar_of(make_samples(0))))


def test_more_rows_than_a_shard_has_are_refused(make_samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_ROWS", 5)
    with pytest.raises(ShardError, match="6 rows, more than the 5 of a shard"):
        parse_table(io.BytesIO(parquet_of(make_samples(0))), "x")


def test_an_image_that_claims_gigabytes_takes_no_memory(make_image: Callable[..., object]) -> None:
    """A PNG file of a few bytes says that it has 100,000 x 100,000 pixels."""
    png = bytearray(encode_png(make_image(0, 0)))  # type: ignore[arg-type]  # an array
    png[16:24] = struct.pack(">II", 100_000, 100_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(ValueError, match=r"100000 x 100000 pixels are not a PNG file of at most 67,108,864"):
        decode_image(bytes(png))


def test_other_image_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="not a PNG file"):
        decode_image(b"GIF89a" + bytes(100))


@pytest.mark.parametrize(("data", "message"), [(b"[" * 10**5, "deeply"), (b"[]", "not an object"), (b"\xff", "decode")])
def test_only_json_objects_are_read(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        json_object(data)


@pytest.mark.parametrize("store", ["local"], indirect=True)
@pytest.mark.parametrize("rel", ["shards/rare-000001.tar", "metadata/rare-000001.parquet", "state/rare-000001.json"])
def test_a_pipe_in_a_files_place_does_not_hang(rel: str, run: Store, spec: RunSpec) -> None:
    run.delete(rel)
    os.mkfifo(Path(run.path) / rel)
    assert verify(run, spec) == {"rare-000001": [f"{rel} is not a file; move it elsewhere"]}
