"""The order of an epoch, split between ranks, and how far a training has come in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed
from torch.utils.data import Sampler

from rarefy.consume.images import Images
from rarefy.consume.order import Places, epoch_order, share, share_size
from rarefy.errors import DataError, bad

REMAINDERS = ("drop", "pad", "keep")


@dataclass(frozen=True)
class Position:
    """Where a training is. done: images of the epoch that all ranks together have used; data: hash of the data set."""

    epoch: int
    done: int
    seed: int
    shuffle: bool
    data: str


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, place)`` for every image of an epoch, exactly once over all ranks, shuffled.

    The order follows from seed and epoch, whatever the numbers of ranks, processes and batches are: image i of the
    order belongs to rank i modulo the number of ranks. Give it to a DataLoader as ``sampler``; its worker processes
    only read what they are told to.
    remainder: what happens if the ranks cannot have equally many images. ``drop`` leaves the last ones of the order
    out, fewer than there are ranks and others in each epoch; ``pad`` repeats some from the order's beginning; ``keep``
    gives some ranks one image more, which can make DistributedDataParallel wait forever.
    rank, world_size: by default those of torch.distributed, else of torchrun's environment variables, else 0 of 1.
    """

    def __init__(
        self,
        data: Images,
        *,
        seed: int = 0,
        shuffle: bool = True,
        remainder: str = "drop",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not isinstance(data, Images):
            raise DataError(bad("data", type(data).__name__, "RareImages, RealImages or MixedImages"))
        if remainder not in REMAINDERS:
            raise DataError(bad("remainder", remainder, "drop, pad or keep"))
        self.data, self.seed, self.shuffle, self.remainder = data, seed, shuffle, remainder
        self.rank, self.world_size = _ranks(rank, world_size)
        if len(data) < self.world_size and remainder == "drop":
            raise DataError(f"data: {len(data)} images are too few for {self.world_size} ranks; use remainder='pad'")
        self.epoch = 0
        self._next_start = 0  # of the next pass: places of the epoch that are done already
        self._start = 0  # of the pass that goes on, or of the next one
        self._fingerprint: str | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass. In the epoch that ``resume`` named, it goes on where that was."""
        if epoch != self.epoch:
            self.epoch, self._start, self._next_start = epoch, 0, 0

    def __len__(self) -> int:
        """Images of this rank in the next pass."""
        return share_size(len(self.data) - self._next_start, self.rank, self.world_size, self.remainder)

    def __iter__(self) -> EpochIterator:
        self._start, self._next_start = self._next_start, 0
        return EpochIterator(self, self.epoch, self._start)

    def state(self, consumed: int) -> dict[str, Any]:
        """What to save. consumed: images that this rank has trained on in this pass, as ``len(batch)`` adds up.

        It is the same on all ranks, and a training with another number of ranks can go on from it.
        """
        return self.position(self.epoch, self._start + consumed * self.world_size)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned. Raises DataError if that was of other images or another order."""
        self.epoch, self._next_start = self.checked(state)
        self._start = self._next_start

    def position(self, epoch: int, done: int) -> dict[str, Any]:
        """The state after the first ``done`` images of an epoch."""
        self._fingerprint = self._fingerprint or self.data.fingerprint()
        return asdict(Position(epoch, min(done, len(self.data)), self.seed, self.shuffle, self._fingerprint))

    def checked(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """Epoch and images done of a state of this order. Raises DataError."""
        try:
            found = Position(**state)
        except TypeError:
            raise DataError(bad("state", state, "what EpochSampler.state or Loader.state_dict returned")) from None
        expected = Position(**self.position(found.epoch, found.done))
        for name, value in asdict(expected).items():
            if getattr(found, name) != value:
                saved = "of other images" if name == "data" else f"of {name} {getattr(found, name)!r}, not {value!r}"
                raise DataError(f"state: it is {saved}; open the same data with the same arguments")
        return found.epoch, found.done

    def share(self, epoch: int, start: int) -> Places:
        """This rank's places of an epoch of which ``start`` images are done."""
        order = epoch_order(len(self.data), self.seed, epoch, self.shuffle)
        return share(order, start, self.rank, self.world_size, self.remainder)


class EpochIterator(Iterator[tuple[int, int]]):
    """One pass of an EpochSampler. torchdata's StatefulDataLoader saves and restores it by itself."""

    def __init__(self, sampler: EpochSampler, epoch: int, start: int) -> None:
        self.sampler = sampler
        self._begin(epoch, start)

    def _begin(self, epoch: int, start: int) -> None:
        self.epoch, self.start, self.given = epoch, start, 0
        self.places = self.sampler.share(epoch, start)

    def __next__(self) -> tuple[int, int]:
        if self.given == len(self.places):
            raise StopIteration
        self.given += 1
        return self.epoch, int(self.places[self.given - 1])

    def state_dict(self) -> dict[str, Any]:
        """After the images that were given."""
        return self.sampler.position(self.epoch, self.start + self.given * self.sampler.world_size)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises DataError if the state is of other images or another order."""
        self._begin(*self.sampler.checked(state))


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks, given or found."""
    if (rank is None) != (world_size is None):
        raise DataError("rank: rank and world_size belong together; give both or none of them")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise DataError(bad("rank", rank, f"from 0 to {world_size - 1}"))
    return rank, world_size
