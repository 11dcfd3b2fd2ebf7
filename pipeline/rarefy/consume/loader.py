"""A DataLoader that can be stopped and resumed within an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from rarefy.consume.sampler import EpochSampler
from rarefy.errors import DataError, bad


class Loader(DataLoader[Any]):
    """A torch DataLoader, with all its arguments, whose ``sampler`` is an EpochSampler.

    It counts the batches that the training has taken, not those that worker processes have read ahead. So
    ``state_dict`` is exact in the middle of an epoch.
    """

    _consumed = 0

    @property
    def epochs(self) -> EpochSampler:
        """The sampler. Raises DataError if it is of another kind or of other images."""
        if not isinstance(self.sampler, EpochSampler):
            raise DataError(bad("sampler", type(self.sampler).__name__, "an EpochSampler; give one of the same data"))
        found, expected = len(self.sampler.data), len(self.dataset)  # type: ignore[arg-type]  # of images, it has one
        if found != expected:
            raise DataError(
                f"sampler: it is of {found:,} images, not of the {expected:,} here; give one of the same data"
            )
        return self.sampler

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self.epochs.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass. In the epoch of a state that was loaded, it goes on where that was."""
        if epoch != self.epoch:
            self._consumed = 0
        self.epochs.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises one of its own iterators
        left, size = len(self.epochs), self.batch_size or 1
        self._consumed = 0
        for batch in super().__iter__():
            self._consumed += min(size, left)
            left -= size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """What to save: the state after the batch that was taken last."""
        return self.epochs.state(self._consumed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Raises DataError if it is of other images or another order."""
        self.epochs.resume(state)
        self._consumed = 0
