"""The driver's storage calls in threads."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rarefy.errors import ShardError, StorageError
from rarefy.generate import commits
from rarefy.generate.commits import LOOKS_S, Commits, StorageThreads
from rarefy.manifest import load_manifest
from rarefy.shards.store import Store

DEMO = Path(__file__).parents[2] / "manifests" / "demo.toml"


def test_a_call_that_hangs_keeps_one_thread_and_nothing_else() -> None:
    threads, free = StorageThreads(2), threading.Event()
    hanging = threads.submit(free.wait)
    quick = [threads.submit(lambda number=number: number) for number in range(50)]
    assert [future.result(timeout=10) for future in quick] == list(range(50))
    assert not hanging.done()
    free.set()
    assert hanging.result(timeout=10)
    threads.close()


def test_an_error_is_the_futures() -> None:
    threads = StorageThreads(1)

    def fail() -> None:
        raise StorageError("503")

    assert isinstance(threads.submit(fail).exception(timeout=10), StorageError)
    assert threads.submit(lambda: 1).result(timeout=10) == 1
    threads.close()


@pytest.fixture
def one(tmp_path: Path) -> Commits:
    """Records its pauses in ``paused`` instead of making them."""
    paused: list[float] = []
    one = Commits(load_manifest(DEMO), Store(str(tmp_path / "out")), paused.append)
    one.paused = paused  # type: ignore[attr-defined]
    return one


@pytest.mark.parametrize(("expected", "appears_at", "found"), [(True, 2, True), (True, 9, False), (False, 1, False)])
def test_a_marker_that_must_be_there_is_looked_for_again(
    expected: bool, appears_at: int, found: bool, one: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def read(store: Store, name: str, digest: str) -> str | None:
        looks.append(name)
        return "marker" if len(looks) > appears_at else None

    monkeypatch.setattr(commits, "read_committed", read)
    assert (one.find(7, expected).result(timeout=10) == "marker") is found
    assert set(looks) == {f"{one.manifest.prefix}-000007"}
    assert len(looks) == (1 if not expected else min(appears_at + 1, len(LOOKS_S)))
    assert one.paused == list(LOOKS_S[1 : len(looks)])  # type: ignore[attr-defined]


def test_weights_come_from_the_first_earlier_shard_that_is_whole(one: Commits, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(store: Store, name: str) -> list[SimpleNamespace]:
        if name.endswith("3"):
            raise ShardError(f"{name}: damaged")
        return [SimpleNamespace(checkpoint_sha256=name, classifier_sha256=None)]

    monkeypatch.setattr(commits, "read_records", read)
    assert one.claim([3, 5, 6]).result(timeout=10) == (f"{one.manifest.prefix}-000005", None)
    assert one.claim([3]).result(timeout=10) is None
    assert one.claim([]).result(timeout=10) is None
    assert one.store.exists("state/run.json")
