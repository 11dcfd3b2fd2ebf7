"""The order of shards, and what becomes of those that fail."""

from __future__ import annotations

import random
import sys

from rarefy.generate.events import Blame
from rarefy.generate.shard_queue import LONGEST_DELAY_S, STORAGE_DELAY_S, Runner, ShardQueue

A, B, C = Runner("actor-1", "n1"), Runner("actor-2", "n1"), Runner("actor-3", "n2")


def queue(shards: int = 100, last: tuple[int, ...] = (), max_attempts: int = 3, seed: int = 1) -> ShardQueue:
    return ShardQueue(range(shards), last, max_attempts, random.Random(seed))


def drain(shards: ShardQueue, runner: Runner = A, now: float = 0.0) -> list[int]:
    out = []
    while (shard := shards.pop(runner, [runner], now)) is not None:
        out.append(shard)
    return out


def test_every_shard_comes_once_in_an_order_of_the_drivers_own() -> None:
    first, second = drain(queue(seed=1)), drain(queue(seed=2))
    assert sorted(first) == sorted(second) == list(range(100))
    agreeing = sum(a == b for a, b in zip(first, second, strict=True))
    assert agreeing < 10


def test_shards_that_were_given_up_before_come_last() -> None:
    assert set(drain(queue(last=(3, 50)))[-2:]) == {3, 50}


def test_a_failed_shard_goes_to_another_machine_or_at_least_another_actor() -> None:
    shards = queue(1)
    assert shards.pop(A, [A, B, C], 0.0) == 0
    shards.failed(0, A, Blame.SHARD, "NaN", 0.0)
    assert shards.pop(A, [A, B, C], 0.0) is None
    assert shards.pop(B, [A, B, C], 0.0) is None, "the other machine is better"
    assert shards.pop(C, [A, B, C], 0.0) == 0
    shards.failed(0, C, Blame.SHARD, "NaN", 0.0)
    assert shards.pop(A, [A, B, C], 0.0) is None
    assert shards.pop(B, [A, B, C], 0.0) == 0, "both machines have failed, but this actor has not"


def test_a_single_actor_gets_its_failed_shard_again() -> None:
    shards = queue(1)
    assert drain(shards) == [0]
    shards.failed(0, A, Blame.SHARD, "NaN", 0.0)
    assert drain(shards) == [0]


def test_attempts_are_bounded_and_system_losses_are_free() -> None:
    shards = queue(1)
    for charged in (1, 2, 3):
        for _ in range(5):
            assert drain(shards) == [0]
            shards.failed(0, A, Blame.SYSTEM, "node died", 0.0)
        assert drain(shards) == [0]
        assert shards.failed(0, A, Blame.ACTOR, f"cause {charged}", 0.0).charged == charged
    assert shards.given_up[0].cause == "cause 3"
    assert len(shards) == 0 and drain(shards) == []


def test_a_final_failure_leaves_no_attempts() -> None:
    shards = queue(1)
    drain(shards)
    shards.failed(0, A, Blame.SHARD, "no image", 0.0, final=True)
    assert list(shards.given_up) == [0]


def test_storage_failures_wait_longer_each_time_and_are_counted_by_themselves() -> None:
    shards = queue(1, max_attempts=10)
    now = 0.0
    for count in range(9):
        assert drain(shards, now=now) == [0]
        trouble = shards.failed(0, A, Blame.STORAGE, "503", now)
        assert trouble.charged == 0
        delay = min(STORAGE_DELAY_S * 2**count, LONGEST_DELAY_S)
        assert shards.due(now + 0.9 * delay) == 0 and shards.due(now + delay) == 1
        assert len(shards) == 1 and drain(shards, now=now + 0.9 * delay) == []
        now += delay
    assert drain(shards, now=now) == [0]
    shards.failed(0, A, Blame.STORAGE, "503", now)
    assert 0 in shards.given_up


def test_a_shard_without_fault_is_the_next_one() -> None:
    shards = queue(10)
    shard = shards.pop(A, [A], 0.0)
    assert shard is not None
    shards.put_back(shard)
    assert shards.pop(B, [A, B], 0.0) == shard


def test_a_waiting_shard_takes_a_few_bytes() -> None:
    shards = queue(200_000)
    assert sys.getsizeof(shards._fresh) < 10 * 200_000
