"""The S3 stand-in's proxy: what it counts, and what each spoiled request does to client and server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks import s3
from benchmarks.s3 import StandIn


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def client(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client that repeats nothing."""
    for name, value in stand_in.environment().items():
        monkeypatch.setenv(name, value)
    stand_in.spoil = lambda operation: None
    stand_in.requests.clear()
    return boto3.client("s3", config=Config(retries={"max_attempts": 0}))


def test_requests_are_counted_by_operation(stand_in: StandIn, client: Any) -> None:
    client.put_object(Bucket="bucket", Key="a/b", Body=b"content")
    assert client.get_object(Bucket="bucket", Key="a/b")["Body"].read() == b"content"
    client.head_object(Bucket="bucket", Key="a/b")
    assert client.list_objects_v2(Bucket="bucket", Prefix="a/")["KeyCount"] == 1
    client.delete_object(Bucket="bucket", Key="a/b")
    assert stand_in.requests == {"PUT": 1, "GET": 1, "HEAD": 1, "LIST": 1, "DELETE": 1}


@pytest.mark.parametrize(("spoil", "status"), [("503", 503), ("403", 403)])
def test_denials_do_not_reach_the_server(stand_in: StandIn, client: Any, spoil: str, status: int) -> None:
    stand_in.spoil = lambda operation: spoil
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket="bucket", Key=spoil, Body=b"content")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    stand_in.spoil = lambda operation: None
    assert "Contents" not in client.list_objects_v2(Bucket="bucket", Prefix=spoil)


@pytest.mark.parametrize(("spoil", "written"), [("reset", False), ("answer lost", True)])
def test_a_connection_can_be_lost_before_or_after_the_write(
    stand_in: StandIn, client: Any, spoil: str, written: bool
) -> None:
    stand_in.spoil = lambda operation: spoil
    with pytest.raises(BotoCoreError):
        client.put_object(Bucket="bucket", Key=spoil, Body=b"content")
    stand_in.spoil = lambda operation: None
    assert ("Contents" in client.list_objects_v2(Bucket="bucket", Prefix=spoil)) == written


def test_a_read_can_be_cut_and_an_answer_can_be_late(
    stand_in: StandIn, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put_object(Bucket="bucket", Key="long", Body=bytes(10_000))
    stand_in.spoil = lambda operation: "truncated read"
    with pytest.raises(BotoCoreError):
        client.get_object(Bucket="bucket", Key="long")["Body"].read()
    monkeypatch.setattr(s3, "DELAY_S", 0.2)
    stand_in.spoil = lambda operation: "delay"
    start = time.monotonic()
    assert len(client.get_object(Bucket="bucket", Key="long")["Body"].read()) == 10_000
    assert time.monotonic() - start >= 0.2
