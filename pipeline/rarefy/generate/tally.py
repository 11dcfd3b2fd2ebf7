"""Counts of one session, and its status."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import InitVar, dataclass, field

from rarefy.generate.actor import Snapshot, add_up
from rarefy.generate.progress import Status
from rarefy.generate.worker import Worker
from rarefy.plan import Plan


@dataclass
class Tally:
    """Images and shards so far. done: shards that were committed at the start; made_*: by this session's actors.

    resumed: images at the start; checking: images of shards whose markers are being looked for; gone: draws of actors
    that are gone; first_ready: when the first actor was.
    """

    plan: Plan
    done: InitVar[Collection[int]]
    resumed: int = 0
    committed: int = 0
    checking: int = 0
    made_shards: int = 0
    made_images: int = 0
    retries: int = 0
    gone: Snapshot = field(default_factory=Snapshot)
    first_ready: float | None = None

    def __post_init__(self, done: Collection[int]) -> None:
        self.resumed = self.committed = sum(map(self.rows, done))

    @property
    def seen(self) -> bool:
        """Whether this session has seen a new marker."""
        return self.committed > self.resumed

    def rows(self, shard: int) -> int:
        """Number of images of a shard."""
        return min(self.plan.shard_size, self.plan.total - shard * self.plan.shard_size)

    def made(self, shard: int, by_us: bool) -> None:
        """Count a committed shard."""
        self.committed += self.rows(shard)
        if by_us:
            self.made_shards += 1
            self.made_images += self.rows(shard)

    def lost(self, worker: Worker) -> None:
        """Keep what a lost actor counted."""
        self.gone = add_up([self.gone, worker.snapshot])

    def status(self, workers: Sequence[Worker], wanted: int, now: float) -> Status:
        """The run at this moment."""
        total = add_up([self.gone, *(worker.snapshot for worker in workers)])
        done = self.committed + self.checking + sum(worker.images_in_flight() for worker in workers)
        elapsed = 0.0 if self.first_ready is None else now - self.first_ready
        rate = (done - self.resumed) / elapsed if elapsed else 0.0
        return Status(
            done=done,
            total=self.plan.total,
            resumed=self.resumed,
            images_per_second=rate,
            eta_s=(self.plan.total - done) / rate if rate > 0 else None,
            actors_alive=sum(worker.ready for worker in workers),
            actors_wanted=wanted,
            retries=self.retries,
            confidence=total.confidence_sum / total.scored if total.scored else None,
            entropy=total.entropy_sum / total.scored if total.scored else None,
            acceptance=total.accepted / total.scored if total.scored else None,
            step_seconds=total.step_seconds / total.steps if total.steps else None,
            doing="" if self.first_ready is not None else _doing(workers),
        )


def _doing(workers: Sequence[Worker]) -> str:
    """What actors do of which none is ready: what the first one that has said something does."""
    return next((worker.snapshot.doing for worker in workers if worker.snapshot.doing), "actors start")
