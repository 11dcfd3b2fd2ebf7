"""How the driver hands out shards, with stand-ins for the actors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rarefy.generate.fit import Resources
from rarefy.generate.fleet import Fleet, _Worker
from rarefy.manifest import load_manifest
from rarefy.shards.store import Store

DEMO = Path(__file__).parents[2] / "manifests" / "demo.toml"


def worker() -> _Worker:
    """A ready actor; each call returns a new reference."""
    generate = SimpleNamespace(remote=lambda shard, attempt: object())
    return _Worker(SimpleNamespace(generate=generate), None, 0.0, ready=True)


@pytest.mark.parametrize(
    ("actors", "waiting", "assigned"),
    [
        (1, 3, [[0, 1]]),  # a single actor always has the next shard queued
        (1, 2, [[0, 1]]),
        (2, 2, [[0], [1]]),
        (2, 3, [[0], [1]]),  # the third waits for the first actor that finishes
        (2, 4, [[0, 2], [1]]),
        (2, 5, [[0, 2], [1, 3]]),
    ],
)
def test_shards_of_each_actor(actors: int, waiting: int, assigned: list[list[int]], tmp_path: Path) -> None:
    fleet = Fleet(load_manifest(DEMO), Store(str(tmp_path)), Resources(actors, 0.0, 1), 60.0, 3, "auto")
    fleet.workers = [worker() for _ in range(actors)]
    fleet.queue.extend(range(waiting))
    fleet._feed()
    fleet._feed()  # no shard is finished, so no other is handed out
    assert [[task.shard for task in worker.tasks.values()] for worker in fleet.workers] == assigned
    assert len(fleet.queue) == waiting - sum(map(len, assigned))
