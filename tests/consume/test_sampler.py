from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from rarefy.consume import EpochSampler, RareImages, mix
from rarefy.consume.images import Images
from rarefy.errors import DataError


@pytest.fixture(scope="module")
def rare(out: Path) -> RareImages:
    return RareImages(out, accepted=False)  # 40 images in 6 shards


def every_rank(data: Images, ranks: int, epoch: int, **options: object) -> list[list[tuple[int, int]]]:
    samplers = [EpochSampler(data, rank=rank, world_size=ranks, **options) for rank in range(ranks)]  # type: ignore[arg-type]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    passes = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(each) for each in passes]
    return passes


@pytest.mark.parametrize("remainder", ["drop", "pad", "keep"])
def test_every_image_exactly_once_over_all_ranks(rare: RareImages, remainder: str) -> None:
    """Also with more ranks than shards (6)."""
    for ranks, epoch in product((1, 2, 3, 7, 16, 40), (0, 1)):
        passes = every_rank(rare, ranks, epoch, remainder=remainder)
        used = Counter(place for each in passes for of_epoch, place in each if of_epoch == epoch)
        lengths = {len(each) for each in passes}
        extra = 40 % ranks
        if remainder == "drop":
            assert len(used) == 40 - extra == used.total() and len(lengths) == 1
        elif remainder == "pad":
            assert len(used) == 40 and used.total() == 40 + (ranks - extra) % ranks and len(lengths) == 1
        else:
            assert len(used) == 40 == used.total() and max(lengths) - min(lengths) <= 1


def test_the_order_does_not_depend_on_the_number_of_ranks(rare: RareImages) -> None:
    (alone,) = every_rank(rare, 1, 3, seed=5)
    for ranks in (2, 4, 8):
        passes = every_rank(rare, ranks, 3, seed=5)
        assert [place for places in zip(*passes, strict=True) for place in places] == alone
    assert every_rank(rare, 1, 3, seed=5) == [alone] != every_rank(rare, 1, 4, seed=5)
    assert [place for _, place in every_rank(rare, 1, 3, seed=6)[0]] != [place for _, place in alone]
    assert [place for _, place in every_rank(rare, 1, 3, shuffle=False)[0]] == list(range(40))


def test_dropped_images_differ_between_epochs(rare: RareImages) -> None:
    dropped = [
        set(range(40)) - {place for each in every_rank(rare, 7, epoch) for _, place in each} for epoch in range(6)
    ]
    assert {len(each) for each in dropped} == {5} and len({frozenset(each) for each in dropped}) == 6


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 4), (4, 2)])
def test_a_resumed_epoch_goes_on_where_it_was_left(rare: RareImages, before: int, after: int) -> None:
    """Also with another number of ranks."""
    (whole,) = every_rank(rare, 1, 2)
    first = [EpochSampler(rare, rank=rank, world_size=before) for rank in range(before)]
    for sampler in first:
        sampler.set_epoch(2)
    used = [place for rank in first for place in list(rank)[: 12 // before]]
    states = [sampler.state(12 // before) for sampler in first]
    assert all(state == states[0] for state in states)
    second = [EpochSampler(rare, rank=rank, world_size=after) for rank in range(after)]
    for sampler in second:
        sampler.resume(states[0])
        assert sampler.epoch == 2 and len(sampler) == 28 // after
        sampler.set_epoch(2)
    rest = [place for rank in second for place in rank]
    assert sorted(used + rest) == sorted(whole) and set(used) == set(whole[:12])
    assert len(second[0]) == 40 // after  # the next pass is whole again
    second[0].set_epoch(3)
    assert list(second[0]) == every_rank(rare, after, 3)[0]


def test_states_between_passes(rare: RareImages) -> None:
    sampler = EpochSampler(rare)
    assert sampler.state(0)["done"] == 0
    list(sampler)
    assert sampler.state(40)["done"] == 40
    end, middle = sampler.state(40), sampler.state(10)
    sampler.set_epoch(1)
    assert (sampler.state(0)["epoch"], sampler.state(0)["done"]) == (1, 0)
    sampler.resume(middle)
    assert sampler.state(0) == middle  # saved again before anything was used
    assert len(list(sampler)) == 30
    assert sampler.state(5)["done"] == 15
    sampler.resume(middle)
    sampler.set_epoch(7)
    assert len(sampler) == 40 == len(list(sampler))  # another epoch than the saved one is whole
    sampler.resume(end)
    assert len(sampler) == 0 == len(list(sampler))


def test_another_order_or_other_images_are_refused(rare: RareImages, out: Path, photos: Path) -> None:
    state = EpochSampler(rare, seed=1).state(3)
    for sampler, message in (
        (EpochSampler(rare, seed=2), "state: it is of seed 1, not 2; open the same data"),
        (EpochSampler(rare, seed=1, shuffle=False), "state: it is of shuffle True, not False"),
        (EpochSampler(RareImages(out), seed=1), "state: it is of other images"),
        (EpochSampler(mix(photos, rare, ratio=0.1), seed=1), "state: it is of other images"),
    ):
        with pytest.raises(DataError, match=message):
            sampler.resume(state)
        assert sampler.state(0)["done"] == 0
    with pytest.raises(DataError, match=r"state: \{'epoch': 3} is not what EpochSampler"):
        EpochSampler(rare).resume({"epoch": 3})
    with pytest.raises(DataError, match="state: it is of done 41, not 40"):
        EpochSampler(rare, seed=1).resume(state | {"done": 41})


def test_ranks_are_found_in_the_environment_of_torchrun(rare: RareImages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (EpochSampler(rare).rank, EpochSampler(rare).world_size) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (EpochSampler(rare).rank, EpochSampler(rare).world_size) == (2, 3)
    assert EpochSampler(rare, rank=0, world_size=1).rank == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "rank: rank and world_size belong together"),
        ({"rank": 2, "world_size": 2}, "rank: 2 is not from 0 to 1"),
        ({"remainder": "cut"}, "remainder: 'cut' is not drop, pad or keep"),
        ({"rank": 0, "world_size": 41}, "data: 40 images are too few for 41 ranks; use remainder='pad'"),
    ],
)
def test_bad_arguments_are_refused(rare: RareImages, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        EpochSampler(rare, **options)  # type: ignore[arg-type]


def test_other_data_sets_are_refused() -> None:
    with pytest.raises(DataError, match="data: 'list' is not RareImages, RealImages or MixedImages"):
        EpochSampler([1, 2])  # type: ignore[arg-type]
