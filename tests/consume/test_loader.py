from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from rarefy.consume import EpochSampler, Loader, RareImages, mix
from rarefy.errors import DataError

Batch = tuple[torch.Tensor, torch.Tensor]


def make_loader(data: object, workers: int, rank: int = 0, ranks: int = 1, **options: object) -> Loader:
    sampler = EpochSampler(data, seed=3, rank=rank, world_size=ranks)  # type: ignore[arg-type]
    return Loader(data, batch_size=4, sampler=sampler, num_workers=workers, **options)  # type: ignore[arg-type]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    same = (
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )
    return len(first) == len(second) and all(same)


@pytest.fixture(scope="module")
def rare(out: Path) -> RareImages:
    return RareImages(out, accepted=False)  # 40 images in 6 shards


@pytest.mark.parametrize(("workers", "context"), [(2, "fork"), (8, "fork"), (1, "spawn")])
def test_processes_change_nothing(rare: RareImages, photos: Path, workers: int, context: str) -> None:
    """Also with more processes than shards, and started anew: two ranks get every image once, in equal batches."""
    mixed = mix(photos, rare, ratio=0.3)  # 34 images
    here = [list(make_loader(mixed, 0, rank, 2)) for rank in range(2)]
    for rank in range(1 if context == "spawn" else 2):
        loader = make_loader(mixed, workers, rank, 2, multiprocessing_context=context)
        assert len(loader) == 5 and equal(list(loader), here[rank])
    images = torch.cat([batch[0] for each in here for batch in each])
    assert images.shape == (34, 1, 28, 28) and len(images.unique(dim=0)) == len({*range(200, 212)}) + 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_what_an_uninterrupted_one_sees(rare: RareImages, workers: int) -> None:
    whole = []
    loader = make_loader(rare, 0)
    for epoch in range(2):
        loader.set_epoch(epoch)
        whole += list(loader)
    first = make_loader(rare, workers)
    seen, batches = [], iter(first)
    for _ in range(3):
        seen.append(next(batches))
    state = first.state_dict()
    del batches
    assert state["done"] == 12  # though the processes have read further
    second = make_loader(rare, workers)
    second.load_state_dict(state)
    assert second.state_dict() == state and len(second) == 7
    for epoch in range(second.epoch, 2):
        second.set_epoch(epoch)
        seen += list(second)
    assert equal(seen, whole) and second.state_dict()["done"] == 40


def test_processes_that_stay_follow_the_epoch(rare: RareImages, photos: Path) -> None:
    mixed = mix(photos, rare, ratio=0.1)
    loader, plain = make_loader(mixed, 1, persistent_workers=True), make_loader(mixed, 0)
    for epoch in range(3):
        for each in (loader, plain):
            each.set_epoch(epoch)
        assert equal(list(loader), list(plain))
    assert not equal(list(loader), list(make_loader(mixed, 0)))


def test_incomplete_batches_count_as_many_images_as_they_have(rare: RareImages) -> None:
    loader = Loader(rare, batch_size=16, sampler=EpochSampler(rare))
    for _ in range(2):  # the same epoch again
        assert [loader.state_dict()["done"] for _ in loader] == [16, 32, 40]
    loader.set_epoch(1)
    assert loader.state_dict()["done"] == 0 and loader.epoch == 1
    loader = Loader(rare, batch_size=16, drop_last=True, sampler=EpochSampler(rare))
    assert [loader.state_dict()["done"] for _ in loader] == [16, 32]
    loader = Loader(rare, batch_size=8, sampler=EpochSampler(rare, rank=1, world_size=3))
    assert [loader.state_dict()["done"] for _ in loader] == [24, 39]
    loader = Loader(rare, batch_size=None, sampler=EpochSampler(rare, rank=0, world_size=2))
    assert [loader.state_dict()["done"] for _ in loader] == list(range(2, 41, 2))


def test_another_sampler_is_refused(rare: RareImages) -> None:
    with pytest.raises(DataError, match="sampler: 'SequentialSampler' is not an EpochSampler"):
        next(iter(Loader(rare, batch_size=4)))


def test_a_sampler_of_other_images_is_refused(rare: RareImages, photos: Path) -> None:
    loader = Loader(mix(photos, rare), batch_size=4, sampler=EpochSampler(rare))  # it would see real images alone
    with pytest.raises(DataError, match="sampler: it is of 40 images, not of the 64 here; give one of the same data"):
        next(iter(loader))


def test_a_plain_loader_that_shuffles_keeps_the_ratio(rare: RareImages, photos: Path) -> None:
    mixed = mix(photos, rare, ratio=0.3)
    labels = torch.cat([batch[1] for batch in DataLoader(mixed, batch_size=8, shuffle=True)])
    assert len(labels) == 34 and labels.bincount(minlength=10)[8] == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_saves_and_restores_the_position(rare: RareImages, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    whole = list(make_loader(rare, 0))
    sampler = EpochSampler(rare, seed=3)
    batches = iter(loader := stateful.StatefulDataLoader(rare, batch_size=4, sampler=sampler, num_workers=workers))
    seen = [next(batches) for _ in range(3)]
    state = loader.state_dict()
    again = stateful.StatefulDataLoader(rare, batch_size=4, sampler=EpochSampler(rare, seed=3), num_workers=workers)
    again.load_state_dict(state)
    assert equal(seen + list(again), whole)
