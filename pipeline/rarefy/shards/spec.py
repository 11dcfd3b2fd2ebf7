"""What the plan says about a shard, so that a committed shard can be compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RowSpec:
    """One planned sample. index: its place in the shard; seed: of a candidate's generator, candidates count from 0.

    shard, image_sha256: of a sample that was chosen from another shard, whose key, shard and index it keeps.
    """

    key: str
    index: int
    class_id: int
    seed: Callable[[int], int] = field(compare=False)
    shard: int | None = None
    image_sha256: str | None = None


@dataclass(frozen=True)
class ShardSpec:
    """One planned shard. max_candidates: how many draws the manifest allows for a sample."""

    name: str
    number: int
    rows: tuple[RowSpec, ...]
    max_candidates: int = 1


@dataclass(frozen=True)
class RunSpec:
    """What a whole run must contain.

    name, digest: the manifest's; shards: by number, computed when asked for, so that a run of 10^9 images needs
    no memory (a slice is cheaper than its shards one by one); counts: samples by class id, without zeros;
    made_by, sealed_by: the commands that a message advises.
    """

    name: str
    digest: str
    shards: Sequence[ShardSpec]
    counts: Mapping[int, int]
    made_by: str = "generate"
    sealed_by: str = "seal"
