"""The plan compared with sorted exact fractions; its balance, large runs, and the seeds."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarefy.manifest import parse_manifest
from rarefy.plan import (
    Plan,
    ShardPlan,
    ShardSpecs,
    Slot,
    class_rank,
    data_names,
    estimate_bytes,
    make_plan,
    sample_seed,
    shard_names,
)


def brute_force(counts: dict[int, int]) -> list[tuple[int, int]]:
    """(class id, class index) of the whole run, in order."""
    everything = [(Fraction(2 * j + 1, 2 * n), c, j) for c, n in counts.items() for j in range(n)]
    return [(c, j) for _, c, j in sorted(everything)]


@settings(max_examples=25, deadline=None)
@given(
    counts=st.dictionaries(st.integers(0, 30), st.integers(1, 40), min_size=1, max_size=8),
    shard_size=st.integers(1, 50),
)
def test_shards_are_slices_of_the_sorted_run(counts: dict[int, int], shard_size: int) -> None:
    plan = Plan(counts, shard_size)
    order = brute_force(counts)
    for k in range(plan.num_shards):
        expected = order[k * shard_size : (k + 1) * shard_size]
        slots = tuple(Slot(i, c, j) for i, (c, j) in enumerate(expected))
        assert plan.shard(k) == ShardPlan(k, slots)
    assert plan.total == len(order)
    with pytest.raises(IndexError):
        plan.shard(plan.num_shards)


def test_every_shard_contains_the_classes_in_proportion() -> None:
    counts = {0: 10, 1: 100, 2: 390}
    plan = Plan(counts, 50)
    for k in range(plan.num_shards):
        slots = plan.shard(k).slots
        for class_id, n in counts.items():
            count = sum(slot.class_id == class_id for slot in slots)
            assert abs(count - len(slots) * n / plan.total) <= 1.5


def test_shards_of_a_billion_samples_are_computed_alone() -> None:
    counts = {c: 10**7 + c for c in range(100)}
    plan = Plan(counts, 1000)
    last = plan.shard(plan.num_shards - 1)
    assert len(last.slots) == plan.total - (plan.num_shards - 1) * 1000
    # The run ends with the last sample of every class.
    ends = {slot.class_id: slot.class_index for slot in last.slots}
    assert all(ends[c] == counts[c] - 1 for c in ends)
    middle, after = plan.shard(500_000), plan.shard(500_001)
    place = [Fraction(2 * s.class_index + 1, 2 * counts[s.class_id]) for s in (*middle.slots, *after.slots)]
    assert place == sorted(place)
    assert len(place) == 2000


def test_shards_planned_together_are_those_planned_alone() -> None:
    plan = Plan({c: 10**5 + 7 * c for c in range(30)}, 7)
    for first in (0, 1, 250_000, plan.num_shards - 20):
        assert list(plan.shards(first, first + 20)) == [plan.shard(k) for k in range(first, first + 20)]


def test_what_a_shard_must_contain() -> None:
    text = 'name = "a"\nseed = 5\nmodel.preset = "fashion-mnist-28"\nclasses.per_class = 2\noutput.shard_size = 8'
    manifest = parse_manifest(f"{text}\naccept.max_candidates = 4", "a.toml")
    specs = ShardSpecs(manifest)
    assert (len(specs), specs[:], specs[1:][0], specs[::2][1]) == (
        3,
        [specs[0], specs[1], specs[2]],
        specs[1],
        specs[2],
    )
    assert specs[-1] == specs[2]
    spec = specs[2]
    assert (spec.name, spec.number, spec.max_candidates) == ("rare-000002", 2, 4)
    slots = make_plan(manifest).shard(2).slots
    assert [row.class_id for row in spec.rows] == [slot.class_id for slot in slots]
    assert [(row.key, row.index) for row in spec.rows] == [(f"00000200{i:03d}", i) for i in range(4)]
    expected = [sample_seed(5, slot.class_id, slot.class_index, 3) for slot in slots]
    assert [row.seed(3) for row in spec.rows] == expected
    with pytest.raises(IndexError):
        ShardSpecs(manifest)[3]


def test_seeds_depend_on_every_argument_and_fit_a_generator() -> None:
    parts = [(s, c, i, d) for s in range(3) for c in range(5) for i in range(20) for d in range(3)]
    seeds = {sample_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Must never change: another value would change every image of every run.
    assert sample_seed(0, 1, 2, 3) == 5628492896039661565


def test_the_first_ranks_of_a_class_spread_evenly_for_any_count() -> None:
    assert [class_rank(j) for j in range(8)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
    for count in (16, 1024):
        assert sorted(class_rank(j) for j in range(count)) == [j / count for j in range(count)]
    for count in (10, 60, 333):
        ranks = sorted(class_rank(j) for j in range(count))
        assert max(abs(rank - (j + 0.5) / count) for j, rank in enumerate(ranks)) < 4 / count
    assert 0 <= class_rank(10**12) < 1


def test_the_plan_of_a_manifest_and_its_size() -> None:
    text = 'name = "a"\n[model]\npreset = "fashion-mnist-28"\n[classes]\nper_class = 2\n[output]\nshard_size = 8'
    manifest = parse_manifest(text, "a.toml")
    assert make_plan(manifest) == Plan(dict.fromkeys(range(10), 2), 8)
    assert list(shard_names(manifest)) == ["rare-000000", "rare-000001", "rare-000002"]
    # A PNG of 610 bytes fills two tar blocks of 512, .cls one and .json two; each file has a header block.
    assert estimate_bytes(manifest) == 20 * (2 + 1 + 2 + 3) * 512
    chosen = parse_manifest(f"{text}\n[select]\nfrom = 3", "a.toml")
    assert make_plan(chosen) == Plan(dict.fromkeys(range(10), 6), 8)
    assert list(data_names(chosen)) == list(shard_names(manifest))
    assert estimate_bytes(chosen) == (60 + 20) * (2 + 1 + 2 + 3) * 512
