"""The whole life of a data set on an S3 server (moto, over HTTP). Runs where s3fs and moto[server] are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rarefy.errors import OutputError, ShardError
from rarefy.shards.card import CardInfo
from rarefy.shards.claim import claim_output
from rarefy.shards.index import is_sealed
from rarefy.shards.reader import read_samples
from rarefy.shards.seal import seal
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.writer import Sample, ShardHeader, commit_shard

s3fs = pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    instance = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    instance.start()
    _, port = instance.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    instance.stop()


def test_no_credentials_and_no_bucket_are_one_line(server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"^out: 's3://absent/x' is not writable \(Unable to locate credentials\)$"):
        Store("s3://absent/x").check_writable()
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with pytest.raises(OutputError, match=r"^out: 's3://absent/x' is not writable \(no such file or bucket\)$"):
        Store("s3://absent/x").check_writable()


def test_commit_seal_read_and_damage(
    server: None,
    monkeypatch: pytest.MonkeyPatch,
    spec: RunSpec,
    card: CardInfo,
    make_header: Callable[[int], ShardHeader],
    make_samples: Callable[[int], list[Sample]],
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    boto3.client("s3").create_bucket(Bucket="bucket")
    store = Store("s3://bucket/out")
    store.check_writable()
    claim_output(store, spec.text, spec.digest)
    for shard in range(3):
        commit_shard(store, make_header(shard), make_samples(shard), seconds=1.0)
    seal(store, spec, card)
    assert is_sealed(Store("s3://bucket/out"))
    assert [sample.key for sample in read_samples(store, "rare-000002")] == [f"00000200{i:03d}" for i in range(6)]
    store.delete("shards/rare-000001.tar")
    with pytest.raises(ShardError, match=r"1 damaged: rare-000001 \(shards/rare-000001\.tar is missing\)"):
        seal(store, spec, card)
    assert is_sealed(store)
    with pytest.raises(ShardError, match="_SUCCESS deleted; 1 markers of damaged shards deleted"):
        seal(store, spec, card, repair=True)
    assert not is_sealed(store)
