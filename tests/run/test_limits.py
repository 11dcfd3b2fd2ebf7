"""Time limits that follow the measured progress, with simulated clocks."""

from __future__ import annotations

import pytest

from rarefy.generate.actor import Snapshot
from rarefy.generate.limits import LONGEST_STEP_S, START_S, STILL_FACTOR, STILL_S, DriverClock, Patience
from rarefy.generate.worker import Place, Task, Worker


def worker(tasks: int = 1, moving: bool = True) -> Worker:
    """A worker that has got its tasks at time 0."""
    one = Worker("actor-1", None, frozenset(), 0.0)  # type: ignore[arg-type]
    one.located(Place("a", "r", "h", 1), 0.0)
    one.ready, one.moving = True, moving
    for shard in range(tasks):
        one.take(Task(shard, str(shard)), 0.0)
    return one


def test_a_working_actor_may_stand_still_as_long_as_the_run_shows_to_be_usual() -> None:
    patience = Patience(storage_s=10.0, shard_s=None)
    assert patience.verdict(worker(), STILL_S + 10.0) is None
    assert patience.verdict(worker(), STILL_S + 10.1) == "no progress in 310 s"
    patience.advanced(60.0)
    patience.advanced(2.0)
    assert patience.verdict(worker(), 60 * STILL_FACTOR + 10.0) is None
    assert patience.verdict(worker(), 60 * STILL_FACTOR + 10.1) == "no progress in 1210 s"


def test_before_the_first_sign_of_progress_there_is_time_to_load_and_compile() -> None:
    patience = Patience(storage_s=10.0, shard_s=None)
    assert patience.verdict(worker(moving=False), START_S + 10.0) is None
    assert patience.verdict(worker(moving=False), START_S + 10.1) is not None
    loading = worker(0, moving=False)
    loading.ready = False
    assert patience.verdict(loading, START_S + 10.1) is not None


def test_actors_that_wait_cannot_hang() -> None:
    patience = Patience(storage_s=0.0, shard_s=1.0)
    assert patience.verdict(worker(0), 1e6) is None
    pending = Worker("actor-1", None, frozenset(), 0.0)  # type: ignore[arg-type]
    assert patience.verdict(pending, 1e6) is None


def test_a_hard_limit_holds_whatever_the_progress() -> None:
    patience = Patience(storage_s=0.0, shard_s=30.0)
    one = worker()
    one.reported(Snapshot({"0": 1.0}), 29.0)
    assert patience.verdict(one, 30.0) is None
    assert patience.verdict(one, 30.1) == "the shard was not finished in 30 s (--shard-timeout)"
    one.finished(one.tasks[0], 30.1)
    one.take(Task(1, "1"), 30.1)
    assert patience.verdict(one, 60.0) is None, "each shard has its own time"


def test_progress_is_what_changes_and_the_first_interval_does_not_count() -> None:
    one = worker(moving=False)
    assert one.reported(Snapshot(), 5.0) is None and not one.moving
    assert one.reported(Snapshot({"0": 0.5}), 40.0) is None and one.moving
    assert one.reported(Snapshot({"0": 0.5}), 41.0) is None
    assert one.advanced_s == 40.0
    assert one.reported(Snapshot({"0": 0.5}, advances=1), 43.0) == 3.0
    assert one.advanced_s == 43.0


def test_time_while_the_driver_is_stopped_does_not_count() -> None:
    readings = iter([100.0, 101.0, 5000.0, 5000.5, 4000.0])
    clock = DriverClock(lambda: next(readings))
    later = 1.5 + LONGEST_STEP_S
    assert [clock() for _ in range(4)] == pytest.approx([1.0, 1.0 + LONGEST_STEP_S, later, later])
