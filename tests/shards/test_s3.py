"""The whole life of a data set on an S3 server (moto, over HTTP)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from s3fs import S3FileSystem

from rarefy.errors import OutputError, ShardError
from rarefy.shards.card import CardInfo
from rarefy.shards.claim import claim_output
from rarefy.shards.index import is_sealed, seal
from rarefy.shards.reader import read_samples
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
    plan: tuple[str, str, list[str], dict[int, int]],
    card: CardInfo,
    make_header: Callable[[int], ShardHeader],
    make_samples: Callable[[int], list[Sample]],
) -> None:
    store = Store(f"{bucket}/out")
    store.check_writable()
    claim_output(store, plan[0], plan[1])
    for shard in range(3):
        commit_shard(store, make_header(shard), make_samples(shard), seconds=1.0)
    seal(store, *plan, card)
    assert is_sealed(Store(f"{bucket}/out"))
    assert [sample.key for sample in read_samples(store, "rare-000002")] == [f"00000200{i:03d}" for i in range(6)]
    store.delete("shards/rare-000001.tar")
    with pytest.raises(ShardError, match=r"1 damaged, markers deleted: rare-000001"):
        seal(store, *plan, card)
    assert not is_sealed(store)
