"""What the selected set must contain: its shards and rows, which follow from the choice and the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rarefy.errors import ShardError
from rarefy.plan import ShardPlan, kept_plan, make_plan, sample_seed, shard_name
from rarefy.select.choice import Choice
from rarefy.shards.metadata import MAX_ROWS, SampleRecord, read_records, sample_key
from rarefy.shards.spec import LazySpecs, RowSpec, RunSpec, ShardSpec
from rarefy.shards.store import Store

if TYPE_CHECKING:
    # Importing it at run time would load torch into every process that only checks shards.
    from rarefy.manifest import Manifest


class SelectedSpecs(LazySpecs):
    """The shards of the selected set, computed when asked for from the pool's metadata.

    The kept samples of a class, in the order of their keys, take the places that the plan of the data set gives to the
    class. So every shard contains the classes in proportion, and is filled from few shards of the pool.
    """

    def __init__(self, store: Store, manifest: Manifest, choice: Choice) -> None:
        self.store, self.prefix, self.seed = store, manifest.prefix, manifest.seed
        self.plan, self.pool, self.keys = kept_plan(manifest), make_plan(manifest), choice.keys
        self.max_candidates = manifest.accept.max_candidates if manifest.accept else 1

    def __len__(self) -> int:
        return self.plan.num_shards

    def of(self, numbers: range) -> list[ShardSpec]:
        return [self._spec(number) for number in numbers]

    def keys_of(self, shard: int) -> list[int]:
        """The keys of a selected shard's samples in the pool, in its order: pool shard * MAX_ROWS + index."""
        return [int(self.keys[slot.class_id][slot.class_index]) for slot in self.plan.shard(shard).slots]

    def pool_name(self, pool_shard: int) -> str:
        """The name of a shard of the pool."""
        return shard_name(self.prefix, pool_shard)

    def _spec(self, shard: int) -> ShardSpec:
        keys = self.keys_of(shard)
        plans = dict(self._pool_plans(keys))
        rows = tuple(self._row(key, *plans[key // MAX_ROWS]) for key in keys)
        return ShardSpec(shard_name(self.prefix, shard), shard, rows, self.max_candidates)

    def _pool_plans(self, keys: Sequence[int]) -> Iterator[tuple[int, tuple[ShardPlan, list[SampleRecord]]]]:
        for number in sorted({key // MAX_ROWS for key in keys}):
            records = read_records(self.store, self.pool_name(number))
            plan = self.pool.shard(number)
            if len(records) != len(plan.slots):
                raise ShardError(f"{self.pool_name(number)}: {len(records)} rows, the plan says {len(plan.slots)}")
            yield number, (plan, records)

    def _row(self, key: int, plan: ShardPlan, records: Sequence[SampleRecord]) -> RowSpec:
        slot, record = plan.slots[key % MAX_ROWS], records[key % MAX_ROWS]
        return RowSpec(
            key=record.key,
            index=slot.index,
            class_id=slot.class_id,
            seed=partial(sample_seed, self.seed, slot.class_id, slot.class_index),
            shard=plan.shard,
            image_sha256=record.image_sha256,
        )


class CopySpecs(LazySpecs):
    """The shards of a selected set without its pool. Which images were chosen is taken from the set's own metadata."""

    def __init__(self, copy: Store, manifest: Manifest) -> None:
        self.copy, self.prefix, self.seed = copy, manifest.prefix, manifest.seed
        self.plan, self.pool = kept_plan(manifest), make_plan(manifest)
        self.max_candidates = manifest.accept.max_candidates if manifest.accept else 1

    def __len__(self) -> int:
        return self.plan.num_shards

    def of(self, numbers: range) -> list[ShardSpec]:
        return [self._spec(number) for number in numbers]

    def _spec(self, shard: int) -> ShardSpec:
        name, places = shard_name(self.prefix, shard), self.plan.shard(shard).slots
        records = read_records(self.copy, name)
        if len(records) != len(places):
            raise ShardError(f"{name}: {len(records)} rows, the plan says {len(places)}")
        planned = {number: self._pool_shard(name, number) for number in sorted({record.shard for record in records})}
        rows = []
        for record, place in zip(records, places, strict=True):
            slot = next((each for each in planned[record.shard].slots if each.index == record.index), None)
            if slot is None or slot.class_id != place.class_id:
                raise ShardError(f"{name}: sample {record.key} is not one that the plan has at its place")
            rows.append(
                RowSpec(
                    key=sample_key(record.shard, slot.index),
                    index=slot.index,
                    class_id=slot.class_id,
                    seed=partial(sample_seed, self.seed, slot.class_id, slot.class_index),
                    shard=record.shard,
                    image_sha256=record.image_sha256,
                )
            )
        return ShardSpec(name, shard, tuple(rows), self.max_candidates)

    def _pool_shard(self, name: str, number: int) -> ShardPlan:
        try:
            return self.pool.shard(number)
        except IndexError:
            raise ShardError(f"{name}: it has samples of shard {number}, which the plan does not have") from None


def selected_spec(manifest: Manifest, specs: LazySpecs) -> RunSpec:
    """What the selected set of a run must contain."""
    return RunSpec(manifest.name, manifest.digest, specs, manifest.counts, made_by="select", sealed_by="select")
