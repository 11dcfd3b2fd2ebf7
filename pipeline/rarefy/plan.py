"""Manifest -> shard plans: class balance and seeds. Each shard is planned on its own, even in a run of 10^9 samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rarefy.manifest import Manifest

_ONE_BITS = 128  # positions in (0, 1) are integer multiples of 2^-128: their order is exact for counts below 2^63


@dataclass(frozen=True)
class Slot:
    """One sample to generate. index: position in the shard; class_index: the sample's number within its class."""

    index: int
    class_id: int
    class_index: int


@dataclass(frozen=True)
class ShardPlan:
    """The slots of one shard, in order."""

    shard: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Plan:
    """The order of a run: sample j of a class with n samples has position (j + 0.5) / n; ties are broken by class id.

    So every shard contains the classes in proportion. counts: samples per class id.
    """

    counts: Mapping[int, int]
    shard_size: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def num_shards(self) -> int:
        return -(-self.total // self.shard_size)

    def shard(self, k: int) -> ShardPlan:
        """The slots of shard ``k``, at most shard_size. Raises IndexError outside the plan."""
        if not 0 <= k < self.num_shards:
            raise IndexError(f"shard {k} of {self.num_shards}")
        start, stop = k * self.shard_size, min((k + 1) * self.shard_size, self.total)
        low, high = self._cut(start), self._cut(stop - 1) + 1
        slots = sorted(
            (_position(j, n), class_id, j)
            for class_id, n in self.counts.items()
            for j in range(_before(low, n), _before(high, n))
        )
        first = start - self._rank(low)
        slots = slots[first : first + stop - start]
        return ShardPlan(k, tuple(Slot(i, class_id, j) for i, (_, class_id, j) in enumerate(slots)))

    def _rank(self, position: int) -> int:
        """Number of samples before a position."""
        return sum(_before(position, n) for n in self.counts.values())

    def _cut(self, rank: int) -> int:
        """The position of sample ``rank``: the last one with at most ``rank`` samples before it."""
        low, high = 0, 1 << _ONE_BITS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._rank(middle) <= rank else (low, middle)
        return low


def make_plan(manifest: Manifest) -> Plan:
    """The plan of a manifest."""
    return Plan(manifest.counts, manifest.shard_size)


def shard_name(prefix: str, shard: int) -> str:
    """File name of a shard, without its extension."""
    return f"{prefix}-{shard:06d}"


def shard_names(manifest: Manifest) -> Iterator[str]:
    """Every shard's name, in order."""
    return (shard_name(manifest.prefix, k) for k in range(make_plan(manifest).num_shards))


def sample_seed(seed: int, class_id: int, class_index: int, candidate: int) -> int:
    """Seed of one draw's generator, in [0, 2**63); independent of shard, actor and attempt."""
    text = f"{seed}:{class_id}:{class_index}:{candidate}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def class_rank(class_index: int) -> float:
    """Rank of a sample within its class, in [0, 1): the radical inverse of its number in base 2.

    This is van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, ... Its first n values spread evenly for any n, so the
    rank does not depend on the class's count, the shard, the batch or the candidate.
    """
    bits = f"{class_index:b}"
    return int(bits[::-1], 2) / (1 << len(bits))


def estimate_bytes(manifest: Manifest) -> int:
    """Approximate size of the run's tars. A PNG takes about 65% of the raw pixels, measured on photographs."""
    preset = manifest.preset
    png = 100 + 0.65 * preset.channels * preset.image_size**2
    blocks = -(-png // 512) + 1 + 2  # png, cls and json, each padded to whole tar blocks
    return manifest.total * int(blocks + 3) * 512  # and one header block for each


def _position(j: int, n: int) -> int:
    return ((2 * j + 1) << (_ONE_BITS - 1)) // n


def _before(position: int, n: int) -> int:
    """How many of a class's n samples have (2j + 1) / 2n < position."""
    one = 1 << _ONE_BITS
    return min(max(-((one // 2 - position * n) // one), 0), n)
