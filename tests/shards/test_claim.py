from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rarefy.errors import OutputError
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store

ROUNDS = 60


# Waits for the other driver before each claim, so that both come at the same moment.
DRIVER = """
import sys, time
from pathlib import Path
from rarefy.errors import OutputError
from rarefy.shards.claim import claim_output
from rarefy.shards.store import Store

folder, me, other, rounds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
for number in range(rounds):
    store = Store(str(folder / f"out{number}"))
    (folder / f"{me}{number}").touch()
    while not (folder / f"{other}{number}").exists():
        time.sleep(0)
    try:
        claim_output(store, f"manifest of {me}", me * 64)
        print(1)
    except OutputError as error:
        assert f"it contains the run of {other * 64}" in str(error), error
        print(0)
"""


def test_of_two_drivers_one_gets_the_output(tmp_path: Path) -> None:
    """Before the run file was created only if absent, both got one output in nine."""
    commands = [[sys.executable, "-c", DRIVER, tmp_path, me, other, str(ROUNDS)] for me, other in ("ab", "ba")]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    first, second = ([int(line) for line in driver.communicate()[0].split()] for driver in drivers)
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * ROUNDS
    for number, a in enumerate(first):
        out, driver = Store(str(tmp_path / f"out{number}")), "a" if a else "b"
        assert out.read_bytes("manifest.toml").decode() == f"manifest of {driver}"
        assert json.loads(out.read_bytes("state/run.json"))["manifest_digest"] == driver * 64


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
