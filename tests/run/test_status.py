"""``rarefy status``: a run's state from its output alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from rarefy.cli import main
from rarefy.errors import OutputError
from rarefy.generate.driver_file import BEAT_S, DriverFile, GivenUp, driver_path
from rarefy.manifest import parse_manifest
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store
from rarefy.status import read_status

MANIFEST = """
name = "tiny"
[model]
preset = "fashion-mnist-28"
[classes]
counts = { 0 = 12, 1 = 8, 4 = 5 }
[output]
shard_size = 4
"""
NOW = 2_000_000_000.0
STATUS = {"images_per_second": 0.5, "actors_alive": 2, "actors_wanted": 4}
DRIVER = DriverFile(
    "20330518T033320-aa", "gpu-1", 4321, NOW - 600, NOW - 12, status=STATUS, retries={"actor": 2, "storage": 1},
    causes=("rare-000003: CUDA error",), waiting="a machine with 1 GPU",
)  # fmt: skip
LOST = GivenUp("rare-000003", 3, "shard", 7, 99, "class 7, seed 99: not finite")


def claimed(store: Store) -> None:
    manifest = parse_manifest(MANIFEST, "m.toml")
    claim_output(store, manifest.text, manifest.digest)


def commit(store: Store, *numbers: int) -> None:
    """Markers by name; status does not read them."""
    for number in numbers:
        store.write_bytes(f"state/rare-{number:06d}.json", b"{}")


def tell(store: Store, *files: DriverFile) -> None:
    for file in files:
        store.write_bytes(driver_path(file.driver), file.to_json())


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a stand-in for S3 with a bucket ``runs``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "local":
        yield Store(str(tmp_path / "out"))
    elif request.param == "memory":
        yield Store(f"memory://{uuid.uuid4().hex}")
    else:
        settings = {"ENDPOINT_URL": request.getfixturevalue("s3"), "DEFAULT_REGION": "us-east-1"}
        for name, value in (settings | {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="runs")
        s3fs.S3FileSystem.clear_instance_cache()
        yield Store(f"s3://runs/{uuid.uuid4().hex}")
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_that_goes_on(store: Store) -> None:
    claimed(store)
    commit(store, 0, 1, 6)  # the last of 7 shards has one image
    other = replace(DRIVER, driver="20330518T033400-bb", host="gpu-2", started_at=NOW - 500, written_at=NOW, causes=())
    tell(store, DRIVER, other)
    status = read_status(store, NOW)
    assert (status.shards, status.planned_shards, status.images, status.planned_images) == (3, 7, 9, 25)
    assert (status.images_per_second, status.eta_s) == (1.0, 16.0)
    assert status.retries == {"actor": 4, "storage": 2}
    assert status.text().splitlines() == [
        "tiny: 9 of 25 images (36.0%), 3 of 7 shards, 1.00 images/s, ETA 16s",
        "driver on gpu-1 (pid 4321): running, heartbeat 12s ago, actors 2/4, waiting: a machine with 1 GPU",
        "driver on gpu-2 (pid 4321): running, heartbeat 0s ago, actors 2/4, waiting: a machine with 1 GPU",
        "retries: 4 (actor), 2 (storage)",
        "  rare-000003: CUDA error",
        "sealed: no, audit: none",
    ]


def test_a_killed_driver_is_silent_and_failures_are_named(store: Store) -> None:
    claimed(store)
    commit(store, 0, 1)
    gone = replace(DRIVER, written_at=NOW - 10 * BEAT_S, given_up=(LOST, replace(LOST, shard="rare-000001")))
    failed = replace(DRIVER, driver="20330518T033400-bb", started_at=NOW - 400, state="failed", error="1 shard missing")
    tell(store, gone, failed)
    status = read_status(store, NOW)
    assert [driver.state for driver in status.drivers] == ["silent", "failed"]
    assert (status.images_per_second, status.eta_s) == (None, None)
    assert status.given_up == (LOST,)  # the other one has been committed since
    lines = status.text().splitlines()
    assert lines[0] == "tiny: 8 of 25 images (32.0%), 2 of 7 shards, no live driver"
    assert lines[1] == "driver on gpu-1 (pid 4321): failed, heartbeat 12s ago: 1 shard missing"
    assert lines[2] == "and 1 earlier drivers"
    assert "given up: rare-000003 after 3 attempts: class 7, seed 99: not finite" in lines


def test_a_run_that_is_over_and_a_damaged_driver_file(store: Store) -> None:
    claimed(store)
    commit(store, *range(7), 99)  # 99 is not in the plan
    store.write_bytes(driver_path("x"), b'{"driver": ')
    store.write_bytes("_SUCCESS", b"{}")
    store.write_bytes("audit/metrics.json", b"[]")
    status = read_status(store, NOW)
    assert (status.shards, status.images, status.sealed) == (7, 25, True)
    assert status.text().splitlines() == [
        "tiny: 25 of 25 images (100.0%), 7 of 7 shards",
        "sealed: yes, audit: unreadable, run rarefy audit again",
    ]


def test_no_damage_of_a_driver_file_is_a_crash(tmp_path: Path) -> None:
    """Every value replaced by one of another kind, and every 7th byte by another."""
    store = Store(str(tmp_path))
    claimed(store)
    whole = json.loads(replace(DRIVER, given_up=(LOST,)).to_json())
    damaged = [
        json.dumps(whole | {key: value}) for key in whole for value in (None, -1, 1e400, "x", [], [3], {"a": []})
    ]
    damaged += [json.dumps(whole | {"status": whole["status"] | {key: "x"}}) for key in whole["status"]]
    damaged += [json.dumps(whole | {"given_up": [whole["given_up"][0] | {"shard": value}]}) for value in ("x", 3, None)]
    data = DRIVER.to_json()
    damaged += [(data[:at] + b"\xff" + data[at + 1 :]).decode("latin-1") for at in range(0, len(data), 7)]
    for text in damaged:
        store.write_bytes(driver_path("x"), text.encode("latin-1"))
        status = read_status(store, NOW)
        assert status.text()
        assert json.dumps(status.drivers[0].age_s if status.drivers else 0)


def test_no_run_is_a_users_error(store: Store) -> None:
    with pytest.raises(OutputError, match="a rarefy run: it has no manifest"):
        read_status(store)


def test_the_command(tmp_path: Path, capsys: Any) -> None:
    store = Store(str(tmp_path))
    claimed(store)
    commit(store, 0)
    tell(store, replace(DRIVER, given_up=(LOST,)))
    assert main(["status", str(tmp_path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["shards"] == 1
    assert content["given_up"][0]["class_id"] == 7
    assert main(["status", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_status_reads_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost does not grow with the bytes of a run of 10^6 shards."""
    store = Store(str(tmp_path))
    claimed(store)
    commit(store, *range(7))
    seen: list[str] = []
    for name in ("read_bytes", "read_or_none"):
        read = getattr(store, name)
        monkeypatch.setattr(store, name, lambda rel, read=read: seen.append(rel) or read(rel))
    read_status(store)
    assert "manifest.toml" in seen
    assert not [rel for rel in seen if rel.startswith("state/rare-")]
