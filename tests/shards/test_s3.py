"""The whole life of a data set on an S3 server (moto, over HTTP)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from s3fs import S3FileSystem

from rarefy.errors import OutputError, ShardError
from rarefy.shards.card import CardInfo
from rarefy.shards.claim import claim_output
from rarefy.shards.index import is_sealed
from rarefy.shards.listing import committed_numbers
from rarefy.shards.metadata import parquet_path, tar_path
from rarefy.shards.reader import read_samples
from rarefy.shards.remote import RemoteFiles
from rarefy.shards.seal import seal
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard


def test_no_credentials_and_no_bucket_are_one_line(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"^out: 's3://absent/x' is not writable \(Unable to locate credentials\)$"):
        Store("s3://absent/x").check_writable()
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with pytest.raises(OutputError, match=r"^out: 's3://absent/x' is not writable \(no such file or bucket\)$"):
        Store("s3://absent/x").check_writable()


def test_commit_seal_read_and_damage(
    bucket: str,
    spec: RunSpec,
    card: CardInfo,
    make_header: Callable[[int], ShardHeader],
    make_samples: Callable[[int], list[Sample]],
) -> None:
    store = Store(f"{bucket}/out")
    store.check_writable()
    claim_output(store, "text", spec.digest)
    for shard in range(3):
        commit_shard(store, make_header(shard), make_samples(shard), seconds=1.0)
    seal(store, spec, card)
    assert is_sealed(Store(f"{bucket}/out"))
    assert [sample.key for sample in read_samples(store, "rare-000002")] == [f"00000200{i:03d}" for i in range(6)]
    store.delete("shards/rare-000001.tar")
    with pytest.raises(ShardError, match=r"1 damaged: rare-000001 \(shards/rare-000001\.tar is missing\)"):
        seal(store, spec, card)
    assert is_sealed(store)
    with pytest.raises(ShardError, match="_SUCCESS deleted; 1 markers of damaged shards deleted"):
        seal(store, spec, card, repair=True)
    assert not is_sealed(store)


def test_withdraw_leaves_what_came_meanwhile(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"{bucket}/out")
    store.write_bytes("x", b"damaged")
    read = RemoteFiles.read

    def read_and_be_overtaken(files: RemoteFiles, path: str) -> bytes:
        data = read(files, path)
        monkeypatch.setattr(RemoteFiles, "read", read)
        store.write_bytes("x", b"repaired by another attempt")
        return data

    monkeypatch.setattr(RemoteFiles, "read", read_and_be_overtaken)
    assert not store.withdraw("x", hashlib.sha256(b"damaged").hexdigest())
    assert store.read_bytes("x") == b"repaired by another attempt"
    assert store.withdraw("x", hashlib.sha256(b"repaired by another attempt").hexdigest())
    assert store.read_or_none("x") is None


def test_a_late_attempt_on_another_machine_changes_nothing(
    bucket: str,
    make_header: Callable[[int], ShardHeader],
    make_samples: Callable[[int], list[Sample]],
    make_sample: Callable[..., Sample],
) -> None:
    store = Store(f"{bucket}/out")
    marker = commit_shard(store, make_header(0), make_samples(0), seconds=1.0)
    files = {rel: store.read_bytes(rel) for rel in (tar_path(marker.name), parquet_path(marker.name))}
    late = [make_sample(0, index, channels=1) for index in range(6)]
    assert commit_shard(store, make_header(0), late, seconds=1.0) == marker
    assert {rel: store.read_bytes(rel) for rel in files} == files
    assert committed_numbers(store, "rare") == {0}


def test_old_private_files_are_swept(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"{bucket}/out")
    store.write_bytes(f"shards/.probe.{'0' * 32}.tmp", b"")
    store.write_bytes("shards/rare-000000.tar", b"")
    assert store.sweep("shards") == 0
    monkeypatch.setattr("rarefy.shards.store.DEAD_S", -1.0)
    assert store.sweep("shards") == 1
    assert store.list("shards") == ["rare-000000.tar"]
