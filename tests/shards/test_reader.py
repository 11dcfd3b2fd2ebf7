from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from rarefy.errors import ShardError
from rarefy.shards.card import CardInfo
from rarefy.shards.metadata import read_records
from rarefy.shards.reader import read_samples
from rarefy.shards.seal import seal
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard

Image = Callable[..., np.ndarray]
Samples = Callable[[int], list[Sample]]
TAR = "shards/rare-000001.tar"


def test_reader_gives_back_what_was_written(run: Store, make_image: Image, make_samples: Samples) -> None:
    samples = list(read_samples(run, "rare-000001"))
    records = [sample.record for sample in make_samples(1)]
    assert [sample.key for sample in samples] == [record.key for record in records]
    assert [sample.class_id for sample in samples] == [0, 1, 0, 1, 0, 1]
    assert [sample.info["accepted"] for sample in samples] == [record.accepted for record in records]
    for sample in samples:
        np.testing.assert_array_equal(sample.image, make_image(1, sample.info["index"]))


def test_grey_images_keep_one_channel(
    store: Store, make_header: Callable[[int], ShardHeader], make_sample: Callable[..., Sample], make_image: Image
) -> None:
    commit_shard(store, make_header(0), [make_sample(0, 0, channels=1)], seconds=1.0)
    (sample,) = read_samples(store, "rare-000000")
    np.testing.assert_array_equal(sample.image, make_image(0, 0, 1))


def test_webdataset_reads_the_sealed_data_set(
    run: Store, spec: RunSpec, card: CardInfo, make_image: Image, tmp_path: Path
) -> None:
    seal(run, spec, card)
    for name in (shard.name for shard in spec.shards):
        (tmp_path / f"{name}.tar").write_bytes(run.read_bytes(f"shards/{name}.tar"))
    pattern = str(tmp_path / "rare-{000000..000002}.tar")
    dataset = (
        webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls", "json")
    )
    rows = list(dataset)
    assert [key for key, *_ in rows] == [f"{shard:06d}{index:05d}" for shard in range(3) for index in range(6)]
    for key, image, class_id, info in rows:
        shard, index = int(key[:6]), int(key[6:])
        np.testing.assert_array_equal(image, np.moveaxis(make_image(shard, index), 0, -1))
        assert class_id == index % 2 and info["seed"] == 2**63 - 1 - index


def sample_end(data: bytes, key: str) -> int:
    """Offset of the end of a sample's last member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmember(f"{key}.png")
    return member.offset_data + -(-member.size // 512) * 512


@pytest.mark.parametrize("extra", [0, 100, 512, 700])
def test_truncated_tar_names_shard_and_last_sample(extra: int, run: Store) -> None:
    """Cut between two samples (which tarfile accepts as a complete archive), in a header, and in a member."""
    data = run.read_bytes(TAR)
    run.write_bytes(TAR, data[: sample_end(data, "00000100002") + extra])
    keys: list[str] = []
    with pytest.raises(ShardError, match="rare-000001: ") as caught:
        keys.extend(sample.key for sample in read_samples(run, "rare-000001"))
    line = str(caught.value)
    assert "\n" not in line and ("00000100002" in line or "sample 00000100003 has the fields" in line)


def test_corrupt_image_names_its_key(run: Store) -> None:
    data = bytearray(run.read_bytes(TAR))
    end = sample_end(bytes(data), "00000100002")
    start = data.rindex(b"\x89PNG", 0, end)
    data[start : start + 4] = b"JUNK"
    run.write_bytes(TAR, bytes(data))
    with pytest.raises(ShardError, match="rare-000001: sample 00000100002 cannot be read"):
        list(read_samples(run, "rare-000001"))


def test_cut_pixels_name_their_key(run: Store) -> None:
    data = bytearray(run.read_bytes(TAR))
    start = data.rindex(b"IDAT", 0, sample_end(bytes(data), "00000100002"))
    data[start + 4 : start + 12] = bytes(8)
    run.write_bytes(TAR, bytes(data))
    with pytest.raises(ShardError, match="rare-000001: sample 00000100002 cannot be read"):
        list(read_samples(run, "rare-000001"))


def test_sample_without_a_field_is_named(run: Store) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(run.read_bytes(TAR))) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            if member.name != "00000100004.cls":
                target.addfile(member, source.extractfile(member))
    run.write_bytes(TAR, out.getvalue())
    with pytest.raises(ShardError, match=r"rare-000001: sample 00000100004 has the fields \['json', 'png'\]"):
        list(read_samples(run, "rare-000001"))


@pytest.mark.parametrize("data", [b"", b"not a tar" * 200])
def test_no_tar_names_the_shard(data: bytes, run: Store) -> None:
    run.write_bytes(TAR, data)
    with pytest.raises(ShardError, match="rare-000001: tar is truncated or damaged after sample none"):
        list(read_samples(run, "rare-000001"))


def test_missing_shard_is_named(run: Store) -> None:
    run.delete(TAR)
    with pytest.raises(ShardError, match=r"rare-000001: shards/rare-000001\.tar is missing"):
        list(read_samples(run, "rare-000001"))
    run.delete("metadata/rare-000001.parquet")
    with pytest.raises(ShardError, match=r"rare-000001: metadata/rare-000001\.parquet is missing"):
        read_records(run, "rare-000001")
