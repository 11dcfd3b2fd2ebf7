"""How many actors fit on machines, and what each gets."""

from __future__ import annotations

import itertools

import pytest

from rarefy.errors import DeviceError
from rarefy.generate import fit
from rarefy.generate.fit import Machine, Request, Resources, check_gpus, fit_cluster, fit_machine, gpu_room


def machines(*cpus_and_gpus: tuple[int, int]) -> list[Machine]:
    return [Machine(str(k), "host", "ip", cpus, gpus) for k, (cpus, gpus) in enumerate(cpus_and_gpus)]


@pytest.mark.parametrize(
    ("gpus", "per_actor", "room"),
    [(1, 0.6, 1), (2, 0.6, 2), (2, 0.5, 4), (3, 2.0, 1), (4, 2.0, 2), (1, 2.0, 0), (0, 0.5, 0), (1, 0.1, 10),
     (1, 0.3, 3), (7, 1.0, 7), (1, 0.0001, 10_000)],
)  # fmt: skip
def test_fractions_of_a_gpu_lie_on_one_gpu(gpus: int, per_actor: float, room: int) -> None:
    assert gpu_room(gpus, per_actor) == room


def test_actors_by_machine_and_not_by_the_sum() -> None:
    per_actor = Resources(None, 0.6, 1)
    assert sum(map(per_actor.room, machines((8, 1), (8, 1)))) == 2
    assert Resources(None, 1.0, 4).room(machines((6, 8))[0]) == 1, "CPUs limit actors with a GPU, too"


@pytest.mark.parametrize(("per_actor", "actors"), list(itertools.product([0.3, 0.5, 0.6, 1.0, 2.0], range(1, 9))))
def test_whole_gpus_are_the_fewest_that_hold_the_actors(per_actor: float, actors: int) -> None:
    enough = [gpus for gpus in range(20) if gpu_room(gpus, per_actor) >= actors]
    assert Resources(actors, per_actor, 1).whole_gpus(actors) == min(enough)
    assert Resources(actors, 0.0, 1).whole_gpus(actors) == 0


@pytest.mark.parametrize("gpus", [1.5, 0.00001, 0.12345, -1.0, float("nan"), float("inf")])
def test_shares_that_ray_cannot_give(gpus: float) -> None:
    with pytest.raises(DeviceError, match=r"gpus_per_actor: .* is not 0, a fraction below 1 in steps of 0\.0001"):
        check_gpus(gpus)


@pytest.mark.parametrize("gpus", [0, 0.0001, 0.1, 0.3, 0.9999, 1, 2.0, 8])
def test_shares_that_ray_can_give(gpus: float) -> None:
    check_gpus(gpus)


@pytest.mark.parametrize(
    ("cores", "asked", "fitted"),
    [
        (16, (None, None, 100), (2, 8)),
        (20, (None, None, 100), (2, 10)),
        (2, (None, None, 100), (1, 2)),
        (16, (None, None, 1), (1, 16)),
        (16, (4, None, 100), (4, 4)),
        (16, (None, 4, 100), (4, 4)),
        (2, (5, None, 100), (5, 1)),
    ],
)
def test_one_machine(
    cores: int, asked: tuple[int | None, int | None, int], fitted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    actors, cpus, shards = asked
    monkeypatch.setattr(fit, "usable_cores", lambda: cores)
    resources = fit_machine(Request(actors, 0.0, cpus, shards))
    assert (resources.actors, resources.cpus) == fitted


def test_gpus_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "visible_gpus", lambda: 2)
    assert fit_machine(Request(None, 0.6, None, 100)).actors == 2
    with pytest.raises(DeviceError, match=r"gpus_per_actor: 0\.6 is not possible for 3 actors: .* 2 GPUs, room for 2"):
        fit_machine(Request(3, 0.6, None, 100))
    with pytest.raises(DeviceError, match="room for 0"):
        fit_machine(Request(None, 3.0, None, 100))


@pytest.mark.parametrize(
    ("cores", "actors", "cpus"),
    [
        ((64, 64), None, 8),
        ((4, 8), None, 4),  # with 8 the smaller machine would be idle
        ((1, 64), None, 8),  # one thread more is not worth 65 processes
        ((0, 12), None, 12),
        ((2, 2), None, 2),
        ((), None, 1),  # from zero
        ((16, 16), 2, 16),
        ((16, 16), 3, 8),
        ((4, 4), 20, 1),  # further actors wait for machines
    ],
)
def test_cpus_of_each_actor_on_a_cluster(cores: tuple[int, ...], actors: int | None, cpus: int) -> None:
    resources = fit_cluster(Request(actors, 0.0, None, 1000), machines(*((number, 0) for number in cores)))
    assert (resources.actors, resources.cpus) == (actors, cpus)


def test_an_actor_on_a_gpu_takes_one_cpu() -> None:
    assert fit_cluster(Request(None, 0.5, None, 10), machines((64, 8))) == Resources(None, 0.5, 1)
    assert Resources(None, 0.5, 1).text() == "1 CPU and 0.5 GPU"
    assert Resources(None, 2.0, 4).text() == "4 CPUs and 2 GPUs"
