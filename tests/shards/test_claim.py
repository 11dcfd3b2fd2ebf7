from __future__ import annotations

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from stepped import Race, races

from rarefy.errors import OutputError
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store


def claim(store: Store, driver: str) -> bool:
    """Whether a driver with a manifest of its own gets the output."""
    try:
        claim_output(store, f"manifest of {driver}", driver * 64, b"model")
    except OutputError as error:
        assert f"it contains the run of {'ab'.replace(driver, '') * 64}" in str(error)
        return False
    return True


def test_of_two_drivers_one_gets_the_output() -> None:
    """Every order of their storage calls. Before the run file was created only if absent, both could get it."""
    root, number = f"memory://claims-{uuid.uuid4().hex}", 0
    attempts = [partial(claim, driver=driver) for driver in "ab"]
    files = ("state/run.json", "manifest.toml", "model.json")
    for race in races(lambda: Race(root, attempts, lambda store: None), switches=4):
        driver = "a" if race.results[0] else "b"
        assert race.results == {0: driver == "a", 1: driver == "b"}
        assert race.store.read_bytes("manifest.toml").decode() == f"manifest of {driver}"
        assert json.loads(race.store.read_bytes("state/run.json"))["manifest_digest"] == driver * 64
        for rel in files:
            race.store.delete(rel)
        number += 1
    assert number > 50


@pytest.mark.parametrize("place", ["memory", "s3"])
def test_of_four_threads_one_creates(place: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("bucket") if place == "s3" else "memory://four-threads"
    barrier, store = threading.Barrier(4), Store(root)

    def create(me: int, rel: str) -> bool:
        barrier.wait()
        return store.create(rel, str(me).encode())

    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            rel = f"{request.node.name}/{number}"
            won = list(pool.map(lambda me, rel=rel: create(me, rel), range(4)))
            assert sorted(won) == [False, False, False, True]
            assert store.read_bytes(rel) == str(won.index(True)).encode()


def test_a_driver_that_died_after_its_claim_leaves_its_manifest(store: Store) -> None:
    claim_output(store, "first", "1" * 64)
    store.delete("manifest.toml")
    claim_output(store, "first # with another comment", "1" * 64)
    assert store.read_bytes("manifest.toml") == b"first"
    store.delete("manifest.toml")
    with pytest.raises(OutputError, match="it contains the run of 1111"):
        claim_output(store, "second", "2" * 64)
    assert not store.exists("manifest.toml")


def test_the_output_of_an_earlier_version_is_completed(store: Store) -> None:
    store.write_bytes("state/run.json", b'{"manifest_digest": "%s"}\n' % (b"1" * 64))
    claim_output(store, "first", "1" * 64, b"model")
    assert store.read_bytes("manifest.toml") == b"first"
    assert store.read_bytes("model.json") == b"model"


@pytest.mark.parametrize(
    "damaged", [b"", b"[]", b"{", b'{"manifest_digest": 1}', b'{"manifest": "x"}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_run_file_is_one_line(damaged: bytes, store: Store) -> None:
    store.write_bytes("state/run.json", damaged)
    with pytest.raises(OutputError, match=r"^out: '.*state/run.json' is not a file that rarefy wrote$"):
        claim_output(store, "first", "1" * 64)
    assert not store.exists("manifest.toml")
