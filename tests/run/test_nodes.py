"""Machines that get no actors for a while, with simulated time."""

from __future__ import annotations

import pytest

from rarefy.generate.events import Blame
from rarefy.generate.fit import Machine, Resources
from rarefy.generate.nodes import EXCLUDED_S, LONGEST_S, Nodes

ONE_GPU = Resources(None, 1.0, 1)


def nodes_of(*gpus: int) -> Nodes:
    """Machines a, b, ... with 8 CPUs and these GPUs."""
    nodes = Nodes(max_starts=3)
    nodes.update([Machine("abcdef"[k], f"host-{k}", f"10.0.0.{k}", 8, number) for k, number in enumerate(gpus)])
    return nodes


def fail(nodes: Nodes, node: str, now: float, blame: Blame = Blame.ACTOR, start: bool = True) -> float:
    return nodes.failed(node, blame, start, False, now)


def test_each_failed_start_doubles_the_time_without_new_actors() -> None:
    nodes, now = nodes_of(1, 1), 100.0
    delays = []
    for _ in range(4):
        delays.append(fail(nodes, "a", now))
        assert nodes.excluded(now + 0.99 * delays[-1]) == {"a"}
        now += delays[-1]
        assert nodes.excluded(now) == frozenset()
    assert delays == [EXCLUDED_S, 2 * EXCLUDED_S, 4 * EXCLUDED_S, 8 * EXCLUDED_S]
    assert max(fail(nodes, "a", now) for _ in range(40)) == LONGEST_S


def test_the_first_failure_while_sampling_excludes_nothing_but_the_second_does() -> None:
    nodes = nodes_of(1)
    assert [fail(nodes, "a", 0.0, start=False) for _ in range(3)] == [0.0, 2 * EXCLUDED_S, 4 * EXCLUDED_S]
    nodes = nodes_of(1)
    assert fail(nodes, "a", 0.0, Blame.NODE, start=False) == EXCLUDED_S


def test_only_a_new_actors_success_clears_a_machine() -> None:
    nodes = nodes_of(2)
    fail(nodes, "a", 10.0)
    nodes.succeeded("a", asked_s=5.0, shard=True)  # the actor on the other GPU, which still works
    assert fail(nodes, "a", 20.0) == 2 * EXCLUDED_S
    nodes.succeeded("a", asked_s=25.0, shard=False)  # loading is not enough: actors may die in their first shard
    assert fail(nodes, "a", 30.0) == 4 * EXCLUDED_S
    nodes.succeeded("a", asked_s=35.0, shard=True)
    assert fail(nodes, "a", 40.0) == EXCLUDED_S


def test_hopeless_is_only_a_cluster_without_any_machine_that_starts_actors() -> None:
    nodes = nodes_of(1, 1, 0)
    for _ in range(3):
        assert not nodes.hopeless(ONE_GPU)
        fail(nodes, "a", 0.0)
    assert not nodes.hopeless(ONE_GPU)
    nodes.failed("b", Blame.NODE, start=True, hopeless=True, now=0.0)
    assert nodes.hopeless(ONE_GPU), "c has no GPU"
    nodes.succeeded("b", asked_s=1.0, shard=False)
    assert not nodes.hopeless(ONE_GPU)
    assert not nodes_of(0).hopeless(ONE_GPU), "a machine may still come"


def test_failures_on_unknown_machines_count_for_the_whole_cluster() -> None:
    nodes = nodes_of(1, 1)
    for _ in range(6):
        assert not nodes.hopeless(ONE_GPU)
        fail(nodes, "", 0.0)
    assert nodes.hopeless(ONE_GPU)


def test_room_is_counted_by_machine_and_without_the_excluded() -> None:
    nodes = nodes_of(2, 3, 0)
    assert nodes.room(Resources(None, 2.0, 1), 0.0) == 2
    assert nodes.room(Resources(None, 0.0, 3), 0.0) == 6
    fail(nodes, "b", 0.0)
    assert nodes.room(ONE_GPU, 0.0) == 2
    assert nodes.room(ONE_GPU, EXCLUDED_S) == 5


def test_machines_by_address() -> None:
    nodes = nodes_of(1, 1)
    assert nodes.at("10.0.0.1") == "b"
    assert nodes.at("10.0.0.9") == ""
    nodes.update([Machine("a", "h", "10.0.0.1", 1, 1), Machine("b", "h", "10.0.0.1", 1, 1)])
    assert nodes.at("10.0.0.1") == "", "two raylets on one machine"


@pytest.mark.parametrize("gpus", [0.25, 1.0])
def test_a_machine_without_gpus_holds_no_actor_that_needs_one(gpus: float) -> None:
    assert nodes_of(0, 0).fitting(Resources(None, gpus, 1)) == []
