"""Manifest -> shard plans: class balance and seeds. A shard is found without the others, so 10^9 samples are fine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rarefy.manifest import Manifest

_ONE_BITS = 128  # positions in (0, 1) as integers of 2^-128: exact in order for counts below 2^63


@dataclass(frozen=True)
class Slot:
    """One sample to make. index: place in the shard; class_index: ordinal of the sample within its class in the run."""

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
    """The order of a run: sample j of a class with n samples stands at (j + 0.5) / n; ties go by class id.

    counts: samples a class id; every stretch of the order, so every shard, holds the classes in proportion.
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
        """Shard ``k``'s slots, at most shard_size. Raises IndexError outside the plan."""
        if not 0 <= k < self.num_shards:
            raise IndexError(f"shard {k} of {self.num_shards}")
        start, stop = k * self.shard_size, min((k + 1) * self.shard_size, self.total)
        low, high = self._cut(start), self._cut(stop - 1) + 1
        found = sorted(
            (_position(j, n), class_id, j)
            for class_id, n in self.counts.items()
            for j in range(_before(low, n), _before(high, n))
        )
        first = start - self._rank(low)
        chosen = found[first : first + stop - start]
        return ShardPlan(k, tuple(Slot(i, class_id, j) for i, (_, class_id, j) in enumerate(chosen)))

    def _rank(self, position: int) -> int:
        """Samples that stand before the position."""
        return sum(_before(position, n) for n in self.counts.values())

    def _cut(self, rank: int) -> int:
        """The last position with at most ``rank`` samples before it: the position of sample ``rank`` itself."""
        low, high = 0, 1 << _ONE_BITS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._rank(middle) <= rank else (low, middle)
        return low


def make_plan(manifest: Manifest) -> Plan:
    """The plan of a manifest."""
    return Plan(manifest.counts, manifest.shard_size)


def shard_name(prefix: str, shard: int) -> str:
    """File stem of a shard."""
    return f"{prefix}-{shard:06d}"


def shard_names(manifest: Manifest) -> Iterator[str]:
    """Every shard's name, in order."""
    return (shard_name(manifest.prefix, k) for k in range(make_plan(manifest).num_shards))


def sample_seed(seed: int, class_id: int, class_index: int, candidate: int) -> int:
    """Seed of one draw's own generator, in [0, 2**63): does not depend on shard, actor or attempt."""
    text = f"{seed}:{class_id}:{class_index}:{candidate}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def class_rank(class_index: int) -> float:
    """Place of a class's sample among those of its class, in [0, 1): the radical inverse of its ordinal in base 2.

    The first n ordinals of a class spread evenly for any n (van der Corput's sequence: 0, 1/2, 1/4, 3/4, 1/8, ...), so
    the rank depends on neither the class's count nor shard, batch or candidate.
    """
    bits = f"{class_index:b}"
    return int(bits[::-1], 2) / (1 << len(bits))


def estimate_bytes(manifest: Manifest) -> int:
    """About how large the run's tars will be. PNG at 0.65 of the raw pixels, as photographs and Fashion-MNIST have."""
    preset = manifest.preset
    png = 100 + 0.65 * preset.channels * preset.image_size**2
    blocks = -(-png // 512) + 1 + 2  # png, cls, json, each padded to a tar block
    return manifest.total * int(blocks + 3) * 512  # and a header each


def _position(j: int, n: int) -> int:
    return ((2 * j + 1) << (_ONE_BITS - 1)) // n


def _before(position: int, n: int) -> int:
    """How many of a class's n samples stand before the position: j with (2j + 1) / 2n < position."""
    one = 1 << _ONE_BITS
    return min(max(-((one // 2 - position * n) // one), 0), n)
