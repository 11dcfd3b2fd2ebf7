"""Manifest -> shard plans: class balance and seeds. Each shard is planned on its own, even in a run of 10^9 samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rarefy.shards.metadata import sample_key
from rarefy.shards.spec import LazySpecs, RowSpec, RunSpec, ShardSpec

if TYPE_CHECKING:
    # Importing it at run time would load torch into every process that only checks shards.
    from rarefy.manifest import Manifest
    from rarefy.shards.store import Store

SELECTED = "selected"  # the folder of the data set that [select] chose from the pool
RECORD = "selection.json"  # in that folder: how it was chosen

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
        return next(self.shards(k, k + 1))

    def shards(self, first: int, stop: int) -> Iterator[ShardPlan]:
        """Shards ``first`` to ``stop - 1``, which are planned together: faster than one by one, in more memory."""
        start = first * self.shard_size
        order = self._order(start, min(stop * self.shard_size, self.total))
        for k in range(first, stop):
            place = k * self.shard_size - start
            slots = order[place : place + self.shard_size]
            yield ShardPlan(k, tuple(Slot(i, class_id, j) for i, (class_id, j) in enumerate(slots)))

    def _order(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(class id, class index) of samples ``start`` to ``stop - 1`` of the run.

        Before a position p in (0, 1) there are n p samples of a class, rounded: p * total samples of the run, give or
        take half of the number of classes. So samples start to stop - 1 lie between the two positions below.
        """
        one, spare = 1 << _ONE_BITS, len(self.counts)
        low = max(start - spare, 0) * one // self.total
        high = min(-(-(stop + spare) * one // self.total), one)
        first, classes = 0, []
        for class_id, n in self.counts.items():
            begin, end = _before(low, n), _before(high, n)
            first += begin
            classes += [(_position(j, n), class_id, j) for j in range(begin, end)]
        classes.sort()
        return [(class_id, j) for _, class_id, j in classes[start - first : stop - first]]


def make_plan(manifest: Manifest) -> Plan:
    """The plan of a manifest: what to sample."""
    return Plan(manifest.pool, manifest.shard_size)


def kept_plan(manifest: Manifest) -> Plan:
    """The order of the data set: as ``make_plan``, or with [select], of the images that it keeps."""
    return Plan(manifest.counts, manifest.shard_size)


def shard_name(prefix: str, shard: int) -> str:
    """File name of a shard, without its extension."""
    return f"{prefix}-{shard:06d}"


def shard_names(manifest: Manifest) -> Iterator[str]:
    """Every shard's name, in order."""
    return (shard_name(manifest.prefix, k) for k in range(make_plan(manifest).num_shards))


class ShardSpecs(LazySpecs):
    """What the plan says about every shard of a manifest, computed when asked for. Small to pickle."""

    def __init__(self, manifest: Manifest) -> None:
        self.plan, self.prefix, self.seed = make_plan(manifest), manifest.prefix, manifest.seed
        self.max_candidates = manifest.accept.max_candidates if manifest.accept else 1

    def __len__(self) -> int:
        return self.plan.num_shards

    def of(self, numbers: range) -> list[ShardSpec]:
        if numbers.step != 1:
            return [self[number] for number in numbers]
        return [self._spec(shard) for shard in self.plan.shards(numbers.start, numbers.stop)]

    def _spec(self, shard: ShardPlan) -> ShardSpec:
        rows = tuple(
            RowSpec(
                key=sample_key(shard.shard, slot.index),
                index=slot.index,
                class_id=slot.class_id,
                seed=partial(sample_seed, self.seed, slot.class_id, slot.class_index),
            )
            for slot in shard.slots
        )
        return ShardSpec(shard_name(self.prefix, shard.shard), shard.shard, rows, self.max_candidates)


def data_store(store: Store, manifest: Manifest) -> Store:
    """Where the data set's shards are: the run's folder, or with [select], the folder of the chosen images.

    A copy of the chosen images without the others, as ``rarefy push`` makes it, has them in its own folder.
    """
    return store if manifest.select is None or is_selected_copy(store, manifest) else store.folder(SELECTED)


def is_selected_copy(store: Store, manifest: Manifest) -> bool:
    """Whether a folder has the chosen images of a run with [select], without those that they were chosen from."""
    return manifest.select is not None and store.exists(RECORD)


def data_names(manifest: Manifest) -> Iterator[str]:
    """The names of the data set's shards, in order."""
    return (shard_name(manifest.prefix, k) for k in range(kept_plan(manifest).num_shards))


def run_spec(manifest: Manifest) -> RunSpec:
    """What the run of a manifest must contain."""
    return RunSpec(manifest.name, manifest.digest, ShardSpecs(manifest), manifest.pool)


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
    """Approximate size of the run's tars, selected ones included.

    A PNG takes about 65% of the raw pixels, measured on photographs.
    """
    preset = manifest.preset
    png = 100 + 0.65 * preset.channels * preset.image_size**2
    blocks = -(-png // 512) + 1 + 2  # png, cls and json, each padded to whole tar blocks
    images = sum(manifest.pool.values()) + (manifest.total if manifest.select else 0)
    return images * int(blocks + 3) * 512  # and one header block for each


def _position(j: int, n: int) -> int:
    return ((2 * j + 1) << (_ONE_BITS - 1)) // n


def _before(position: int, n: int) -> int:
    """How many of a class's n samples have (2j + 1) / 2n < position."""
    one = 1 << _ONE_BITS
    return min(max(-((one // 2 - position * n) // one), 0), n)
