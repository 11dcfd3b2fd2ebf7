"""How the driver hands out shards, with stand-ins for the actors: no work is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rarefy.generate.cluster import Resources
from rarefy.generate.fleet import Fleet, _Worker
from rarefy.manifest import load_manifest
from rarefy.shards.store import Store

DEMO = Path(__file__).parents[2] / "manifests" / "demo.toml"


def worker() -> _Worker:
    """A ready actor whose every call is a new reference."""
    generate = SimpleNamespace(remote=lambda shard, attempt: object())
    return _Worker(SimpleNamespace(generate=generate), None, 0.0, ready=True)


@pytest.mark.parametrize(
    ("actors", "waiting", "held"),
    [
        (1, 3, [[0, 1]]),  # an only actor samples the next shard while it writes one, to the last
        (1, 2, [[0, 1]]),
        (2, 2, [[0], [1]]),
        (2, 3, [[0], [1]]),  # the third is whose turn comes first
        (2, 4, [[0, 2], [1]]),
        (2, 5, [[0, 2], [1, 3]]),
    ],
)
def test_who_holds_what(actors: int, waiting: int, held: list[list[int]], tmp_path: Path) -> None:
    fleet = Fleet(load_manifest(DEMO), Store(str(tmp_path)), Resources(actors, 0.0, 1), 60.0, 3, "auto")
    fleet.workers = [worker() for _ in range(actors)]
    fleet.queue.extend(range(waiting))
    fleet._feed()
    fleet._feed()  # nothing has come back: nothing more is handed out
    assert [[task.shard for task in worker.tasks.values()] for worker in fleet.workers] == held
    assert len(fleet.queue) == waiting - sum(map(len, held))
