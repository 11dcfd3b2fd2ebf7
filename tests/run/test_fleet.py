"""What the driver does with failures of every kind, with stand-ins for actors and storage."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import WEIGHTS, FakeCluster, FakeHandle, FakeMarker, FakeRun
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from rarefy.errors import (
    CheckpointError,
    DeviceError,
    ExhaustedError,
    ManifestError,
    NonFiniteError,
    OutputError,
    ShardError,
    StorageError,
    TemporaryError,
)
from rarefy.generate import fleet, head, limits, nodes, shard_queue
from rarefy.generate.actor import Snapshot
from rarefy.generate.events import Blame, What
from rarefy.generate.progress import Status


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays of hundredths of a second."""
    monkeypatch.setattr(fleet, "TICK_S", 0.01)
    monkeypatch.setattr(nodes, "EXCLUDED_S", 0.02)
    monkeypatch.setattr(shard_queue, "STORAGE_DELAY_S", 0.02)
    monkeypatch.setattr(head, "REFRESH_S", 0.05)


def silent(status: Status) -> None:
    """A progress sink that shows nothing."""


def finish(run: FakeRun) -> Any:
    return run.fleet().finish(set(), (), silent)


@pytest.mark.parametrize(
    ("actors", "waiting", "assigned"),
    [
        (1, 3, [2]),  # a single actor always has the next shard queued
        (1, 2, [2]),
        (2, 2, [1, 1]),
        (2, 3, [1, 1]),  # the third waits for the first actor that finishes
        (2, 4, [2, 1]),
        (2, 5, [2, 2]),
    ],
)
def test_shards_of_each_actor(actors: int, waiting: int, assigned: list[int], tmp_path: Path) -> None:
    cluster = FakeCluster([f"n{k}" for k in range(actors)], make=lambda *_: None)
    one = FakeRun(tmp_path, cluster).fleet()
    one._prepare(set(range(10 - waiting)), ())
    one._heard(cluster.machines())
    for _ in ("places", "weights", "the claim"):
        one.loop.turn(0.1)
    one._feed()
    one._feed()  # no shard is finished, so no other is handed out
    assert [len(worker.tasks) for worker in one.staff.workers] == assigned
    assert len(one.queue) == waiting - sum(assigned)


def test_every_shard_is_made_once_and_counted(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, FakeCluster(["a", "b"]))
    statuses: list[Status] = []
    tally = run.fleet().finish({3, 4}, (), statuses.append)
    assert sorted(run.cluster.markers) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert sorted(shard for shard, _ in run.cluster.given) == sorted(run.cluster.markers)
    assert (tally.made_shards, tally.made_images, tally.retries, tally.resumed) == (8, 16, 0, 4)
    assert statuses[-1].done == 20
    assert all(handle.killed for handle in run.cluster.handles)


def test_shards_that_another_driver_made_are_not_ours(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, FakeCluster(["a"]))
    run.cluster.markers.update({shard: FakeMarker("another-1") for shard in (1, 2, 7)})
    tally = finish(run)
    assert (tally.made_shards, tally.made_images, tally.committed) == (7, 14, 20)


def test_a_machine_whose_actors_cannot_load_is_left_alone(tmp_path: Path) -> None:
    def load(handle: FakeHandle) -> Any:
        if handle.node == "sick":
            raise DeviceError("device: 'cuda' is not available: torch finds no GPU on this machine")
        return WEIGHTS

    run = FakeRun(tmp_path, FakeCluster(["sick", "well"], load))
    assert finish(run).made_shards == 10
    assert {event.node for event in run.told(What.NODE_EXCLUDED)} == {"sick"}
    assert run.told(What.RETRY) == []


@pytest.mark.parametrize("error", [ManifestError("sampler: no"), CheckpointError("model: no"), OutputError("out: no")])
def test_a_users_error_ends_the_run_at_once(error: Exception, tmp_path: Path) -> None:
    def load(handle: FakeHandle) -> Any:
        raise error

    run = FakeRun(tmp_path, FakeCluster(["a", "b", "c"], load))
    with pytest.raises(type(error), match="no"):
        finish(run)
    assert run.cluster.given == []


def test_a_machine_without_the_weights_is_no_users_error_once_another_has_loaded_them(tmp_path: Path) -> None:
    def load(handle: FakeHandle) -> Any:
        if handle.number:
            raise CheckpointError("model.checkpoint: 'unet.safetensors' is not a file")
        return WEIGHTS

    run = FakeRun(tmp_path, FakeCluster(["a", "b"], load))
    assert finish(run).made_shards == 10
    assert {event.node for event in run.told(What.ACTOR_LOST)} == {"b"}


def test_a_machine_without_the_weights_is_no_users_error_while_another_still_loads_them(tmp_path: Path) -> None:
    def load(handle: FakeHandle) -> Any:
        if handle.node == "a":
            raise CheckpointError("model.checkpoint: 'unet.safetensors' is not a file")
        threading.Timer(0.05, handle.calls[-1][0].set_result, [WEIGHTS]).start()
        return None

    run = FakeRun(tmp_path, FakeCluster(["b", "a"], load))
    assert finish(run).made_shards == 10
    assert {event.node for event in run.told(What.ACTOR_LOST)} == {"a"}


def test_a_single_machine_without_its_device_ends_the_run_at_once(tmp_path: Path) -> None:
    def load(handle: FakeHandle) -> Any:
        raise DeviceError("device: 'cuda' is not available")

    run = FakeRun(tmp_path, FakeCluster(["a"], load))
    with pytest.raises(DeviceError, match="'cuda' is not available"):
        finish(run)
    assert len(run.cluster.handles) == 1


def test_starts_that_fail_everywhere_end_the_run_after_a_few(tmp_path: Path) -> None:
    def load(handle: FakeHandle) -> Any:
        raise ModuleNotFoundError("No module named 'mine'")

    run = FakeRun(tmp_path, FakeCluster(["a", "b"], load))
    with pytest.raises(DeviceError, match="none works now; the last failed with ModuleNotFoundError: No module"):
        finish(run)
    assert 6 <= len(run.cluster.handles) <= 8, "three starts on each machine"


def test_an_actor_with_a_lost_device_is_replaced_and_eats_no_shards(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if handle.number == 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return FakeMarker(attempt)

    run = FakeRun(tmp_path, FakeCluster(["a", "b"], make=make))
    tally = finish(run)
    assert (tally.made_shards, tally.retries) == (10, 1)
    assert sum(number == 0 for _, number in run.cluster.given) <= 2  # the one that failed and the one in its queue
    (retry,) = run.told(What.RETRY)
    assert (retry.blame, retry.number, retry.actor) == (Blame.ACTOR, 1, "ray-0")
    assert "illegal memory access" in retry.cause


def test_only_the_shard_that_ran_is_charged_when_an_actor_dies(tmp_path: Path) -> None:
    cluster = FakeCluster(["a"])

    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if handle.number:
            return FakeMarker(attempt)
        if len(handle.calls) >= 4:  # place, load and two shards
            threading.Timer(0.05, handle.die, [ActorDiedError()]).start()
        return None

    cluster.make = make
    run = FakeRun(tmp_path, cluster, max_attempts=2)
    tally = finish(run)
    assert (tally.made_shards, tally.retries, len(run.told(What.RETRY))) == (10, 1, 1)


def test_preemptions_use_up_no_attempts(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if handle.number < 5:
            raise ActorUnavailableError("Socket closed", None)
        return FakeMarker(attempt)

    run = FakeRun(tmp_path, FakeCluster(["a"], make=make), max_attempts=1)
    assert finish(run).made_shards == 10
    assert {(event.blame, event.number) for event in run.told(What.RETRY)} == {(Blame.SYSTEM, 0)}


def test_a_shard_that_was_committed_before_its_actor_died_is_done(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if handle.number == 0:
            handle.cluster.markers[shard] = FakeMarker(attempt)
            raise ActorDiedError()
        return FakeMarker(attempt)

    run = FakeRun(tmp_path, FakeCluster(["a"], make=make), max_attempts=1)
    tally = finish(run)
    assert (tally.made_shards, tally.retries) == (10, 0)


def test_an_exhausted_shard_is_given_up_at_once_and_the_rest_is_made(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if shard == 4:
            raise ExhaustedError("rare-000004: 1 slots of class 3 got no image")
        return FakeMarker(attempt)

    run = FakeRun(tmp_path, FakeCluster(["a", "b"], make=make))
    with pytest.raises(ShardError, match=r"1 of 10 shards are missing.*: rare-000004 .*class 3 got no image"):
        finish(run)
    assert len(run.cluster.markers) == 9
    assert [event.shard for event in run.told(What.GIVEN_UP)] == [4]
    assert Counter(shard for shard, _ in run.cluster.given)[4] == 1


def test_a_shard_that_is_not_finite_is_tried_on_other_machines(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if shard == 4 and handle.node != "c":
            raise NonFiniteError("rare-000004: NaN at step 3")
        return FakeMarker(attempt)

    run = FakeRun(tmp_path, FakeCluster(["a", "b", "c"], make=make))
    assert finish(run).made_shards == 10
    tried = [number for shard, number in run.cluster.given if shard == 4]
    assert len(tried) == len(set(tried)) <= 3
    assert run.told(What.ACTOR_LOST) == []


def test_a_run_that_gives_nothing_but_nan_ends_early(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        raise NonFiniteError("NaN at step 3")

    run = FakeRun(tmp_path, FakeCluster(["a", "b", "c"], make=make), shards=1000)
    with pytest.raises(ShardError, match=r"no shard could be made, and 3 were given up.*NaN at step 3"):
        finish(run)
    assert len(run.cluster.given) < 50


def make_except_on_b(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
    if handle.node != "b":
        return FakeMarker(attempt)
    raise OutputError("out: '/data/out' is not writable (Read-only file system)")


def test_one_machine_that_cannot_write_costs_retries(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, FakeCluster(["a", "b"], make=make_except_on_b), max_attempts=20)
    assert finish(run).made_shards == 10


def test_an_output_that_the_driver_cannot_write_either_ends_the_run(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if len(handle.cluster.markers) < 2:
            return FakeMarker(attempt)
        raise OutputError("out: '/data/out' is not writable (No space left on device)")

    run = FakeRun(tmp_path, FakeCluster(["a"], make=make), shards=1000)
    fleet = run.fleet()
    fleet.commits.refusal = OutputError("out: the driver cannot write")  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="the driver cannot write"):
        fleet.finish(set(), (), silent)
    assert len(run.cluster.given) < 50


@pytest.mark.parametrize(("error", "cause"), [(NonFiniteError, "no shard could be made"), (ExhaustedError, "missing")])
def test_a_resumed_run_that_makes_nothing_ends(error: type[ShardError], cause: str, tmp_path: Path) -> None:
    """NaN everywhere ends it early. Exhausted shards, which earlier sessions left, are all tried."""

    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        raise error("rare: of no use")

    run = FakeRun(tmp_path, FakeCluster(["a"], make=make), shards=30)
    with pytest.raises(ShardError, match=cause):
        run.fleet().finish(set(range(10)), (), silent)
    tried = len({shard for shard, _ in run.cluster.given})
    assert tried == 20 if error is ExhaustedError else tried < 10


def test_a_storage_that_fails_for_a_while_costs_only_time(tmp_path: Path) -> None:
    failures = Counter[int]()

    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        failures[shard] += 1
        if failures[shard] <= 2:
            raise StorageError("out: 's3://b' is not writable (503)")
        return FakeMarker(attempt)

    run = FakeRun(tmp_path, FakeCluster(["a"], make=make))
    tally = finish(run)
    assert (tally.made_shards, tally.retries) == (10, 20)
    assert run.told(What.ACTOR_LOST) == []


def test_missing_shards_of_sick_actors_are_worth_another_try(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        if shard == 4:
            raise RuntimeError("CUDA error")
        return FakeMarker(attempt)

    cluster = FakeCluster(["a"], make=make)
    run = FakeRun(tmp_path, cluster, max_attempts=2)
    with pytest.raises(TemporaryError, match=r"1 of 10 shards are missing.*CUDA error.*run the same command"):
        finish(run)
    assert len(cluster.markers) == 9


def test_a_storage_that_the_driver_does_not_share_ends_the_run(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, FakeCluster(["a"]))
    one = run.fleet()
    run.cluster.markers = {}  # not those that the actors write
    with pytest.raises(OutputError, match="shared by all machines"):
        one.finish(set(), (), silent)


def test_a_slow_look_for_a_marker_stalls_nothing(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, FakeCluster(["a"]))
    one = run.fleet()
    slow: Future[Any] = Future()
    quick_find = one.commits.find

    def find(shard: int, expected: bool) -> Future[Any]:
        if len(run.cluster.markers) == 10 and not slow.done():
            slow.set_result(FakeMarker("other"))
        return slow if shard == 4 else quick_find(shard, expected)

    one.commits.find = find  # type: ignore[method-assign]
    assert one.finish(set(), (), silent).made_shards == 9


def test_an_actor_without_progress_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "START_S", 0.1)
    cluster = FakeCluster(["a", "b"])
    cluster.make = lambda handle, shard, attempt: FakeMarker(attempt) if handle.number else None
    cluster.progress = lambda handle: Snapshot({"x": float(len(cluster.markers))}) if handle.number else Snapshot()
    run = FakeRun(tmp_path, cluster)
    one = run.fleet()
    one.patience.storage_s = 0.0
    assert one.finish(set(), (), silent).made_shards == 10
    (lost,) = run.told(What.ACTOR_LOST)
    assert (lost.actor, lost.cause) == ("ray-0", "TimeoutError: no progress in 0 s")


def test_weights_that_differ_from_earlier_shards_are_the_users_fault(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, FakeCluster(["a"]))
    one = run.fleet()
    one.commits.earlier_weights = ("older", None)  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="weights: 'unet without classifier' is not the weights"):
        one.finish({0}, (), silent)


@pytest.mark.parametrize("good", ["a", "b"])
def test_a_machine_with_other_weights_gets_no_shards(good: str, tmp_path: Path) -> None:
    cluster = FakeCluster(["a", "b"])
    cluster.load = lambda handle: WEIGHTS if handle.node == good else ("stale", None)
    run = FakeRun(tmp_path, cluster)
    one = run.fleet()
    one.commits.earlier_weights = WEIGHTS  # type: ignore[attr-defined]
    assert one.finish({0}, (), silent).made_shards == 9
    assert {cluster.handles[number].node for _, number in cluster.given} == {good}
    assert {event.node for event in run.told(What.NODE_EXCLUDED)} == {"a", "b"} - {good}


def test_machines_that_come_are_used_and_one_request_waits_for_the_first(tmp_path: Path) -> None:
    cluster = FakeCluster([])
    run = FakeRun(tmp_path, cluster)

    def progress(status: Status) -> None:
        if not cluster.nodes:
            assert [handle.node for handle in cluster.handles] == [""]
            cluster.nodes += ["a", "b"]

    def make(handle: FakeHandle, shard: int, attempt: str) -> None:
        """Takes so long that there is work for the second machine."""
        future = handle.calls[-1][0]
        marker = cluster.markers[shard] = FakeMarker(attempt)
        handle.made.append(shard)
        threading.Timer(0.03, future.set_result, [marker]).start()

    cluster.make = make
    tally = run.fleet().finish(set(), (), progress)
    assert tally.made_shards == 10
    assert {handle.node for handle in cluster.handles if handle.made} == {"a", "b"}


def test_loss_of_the_head_has_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_S", 0.2)
    cluster = FakeCluster(["a"], make=lambda *_: None)
    run = FakeRun(tmp_path, cluster)

    def progress(status: Status) -> None:
        cluster.silent.set()

    with pytest.raises(TemporaryError, match="the head of the Ray cluster has not answered for"):
        run.fleet().finish(set(), (), progress)
    cluster.silent.clear()  # the thread that asks for machines may end


def test_loss_of_rays_server_on_the_drivers_machine_ends_the_run(tmp_path: Path) -> None:
    def make(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
        raise RayActorError("1", "The actor is dead because its owner has died. Owner's node has crashed.")

    with pytest.raises(TemporaryError, match="Ray's server on the driver's machine has died"):
        finish(FakeRun(tmp_path, FakeCluster(["a"], make=make)))
