"""What the plan says about a shard, so that a committed shard can be compared with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload


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


class LazySpecs(Sequence[ShardSpec]):
    """The specs of a run's shards by number, computed when asked for."""

    @abstractmethod
    def of(self, numbers: range) -> list[ShardSpec]:
        """The specs of the shards with these numbers, all of which exist."""

    @overload
    def __getitem__(self, place: int) -> ShardSpec: ...

    @overload
    def __getitem__(self, place: slice) -> list[ShardSpec]: ...

    def __getitem__(self, place: int | slice) -> ShardSpec | list[ShardSpec]:
        numbers = range(len(self))[place]
        return self.of(range(numbers, numbers + 1))[0] if isinstance(numbers, int) else self.of(numbers)


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
