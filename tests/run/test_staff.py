"""How many actors are asked for, and what is said about those that wait; with simulated time."""

from __future__ import annotations

import pytest
from fake_cluster import FakeCluster

from rarefy.errors import DeviceError, TemporaryError
from rarefy.generate.events import Blame, Event
from rarefy.generate.fit import Resources
from rarefy.generate.nodes import EXCLUDED_S
from rarefy.generate.staff import NO_MACHINE_S, REMIND_S, WAITING_S, Staff
from rarefy.generate.worker import Place


def staff_on(cluster: FakeCluster, actors: int | None, events: list[Event]) -> Staff:
    staff = Staff(cluster, Resources(actors, 0.0, 1), 3, [events.append])
    staff.nodes.update(cluster.machines())
    return staff


@pytest.mark.parametrize(
    ("nodes", "actors", "shards", "asked"),
    [
        (["a", "b", "c"], None, 100, 3),
        (["a", "b", "c"], None, 2, 2),  # never more than there are shards
        (["a", "b", "c"], 2, 100, 2),
        (["a"], 5, 100, 5),  # an autoscaler sees the requests that wait
        ([], None, 100, 1),  # from zero
        ([], None, 0, 0),
    ],
)
def test_number_of_requests(nodes: list[str], actors: int | None, shards: int, asked: int) -> None:
    staff = staff_on(FakeCluster(nodes), actors, [])
    assert len(staff.recruit(shards, 0.0)) == asked == staff.wanted
    assert staff.recruit(shards, 1.0) == []


def test_a_request_that_nothing_can_meet_is_made_anew_when_a_machine_is_free_again() -> None:
    cluster = FakeCluster(["a"])
    staff = staff_on(cluster, None, [])
    (worker,) = staff.recruit(9, 0.0)
    worker.located(Place("a", "r", "h", 1), 0.0)
    staff.failed(worker, RuntimeError("no"), Blame.ACTOR, 1.0)
    (waits,) = staff.recruit(9, 1.1)
    assert waits.excluded == {"a"} and cluster.handles[-1].node == ""
    assert staff.recruit(9, 1.2) == []
    (again,) = staff.recruit(9, 1.0 + EXCLUDED_S)
    assert again.excluded == frozenset() and cluster.handles[-1].node == "a"
    assert waits.gone and staff.workers == [again]


def test_waiting_is_told_when_it_begins_when_it_changes_and_now_and_then() -> None:
    cluster, events = FakeCluster([]), list[Event]()
    staff = staff_on(cluster, None, events)
    staff.recruit(9, 0.0)
    for second in range(int(WAITING_S + 2 * REMIND_S + 10)):
        staff.wait(float(second))
    none = "an actor that needs 1 CPU has not started: none of the cluster's 0 machines has so much"
    assert [event.cause for event in events] == [none] * 3
    cluster.nodes.append("a")
    staff.nodes.update(cluster.machines())
    staff.wait(1000.0)
    assert events[-1].cause.endswith("its process is slow to start, or the machines that have so much are in use")
    staff.workers[0].located(Place("a", "r", "h", 1), 1001.0)
    staff.wait(5000.0)
    assert len(events) == 4


def test_a_day_without_a_machine_ends_the_run() -> None:
    staff = staff_on(FakeCluster([]), None, [])
    staff.recruit(9, 0.0)
    staff.wait(NO_MACHINE_S)
    with pytest.raises(TemporaryError, match=r"no actor could run for 24 hours: none of the cluster's 0 machines"):
        staff.wait(NO_MACHINE_S + 1)


def test_failing_starts_end_nothing_while_another_actor_may_still_load() -> None:
    cluster = FakeCluster(["a"])
    staff, now = staff_on(cluster, 2, []), 0.0
    slow, *_ = staff.recruit(9, now)
    slow.located(Place("a", "r", "h", 1), now)
    for _ in range(5):
        sick = staff.workers[1]
        sick.located(Place("a", "r", "h", 2), now)
        staff.failed(sick, RuntimeError("CUDA error"), Blame.ACTOR, now)
        now += 1000.0
        staff.recruit(9, now)
    with pytest.raises(DeviceError, match="none works now; the last failed with RuntimeError: CUDA error"):
        staff.failed(slow, RuntimeError("CUDA error"), Blame.ACTOR, now)
