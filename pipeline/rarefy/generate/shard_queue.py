"""The shards that wait for an actor, and what has gone wrong with each."""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from rarefy.generate.events import Blame

STORAGE_DELAY_S = 5.0  # before a shard whose storage failed is tried again; it doubles with each failure
LONGEST_DELAY_S = 300.0


@dataclass(frozen=True)
class Runner:
    """An actor that could run a shard, and its machine."""

    actor: str
    node: str


@dataclass
class Trouble:
    """A shard's failed attempts. due: when it may be tried again; runners: those that failed."""

    shard: int
    charged: int = 0
    storage: int = 0
    due: float = 0.0
    runners: list[Runner] = field(default_factory=list)
    blame: Blame = Blame.SYSTEM
    cause: str = ""

    def distance(self, runner: Runner) -> int:
        """How unlike the failed ones this runner is: 2 another machine, 1 another actor, 0 the same."""
        if runner.node not in {failed.node for failed in self.runners}:
            return 2
        return int(runner.actor not in {failed.actor for failed in self.runners})


class ShardQueue:
    """Hands out shards in random order, so that two drivers of one run rarely make the same.

    A waiting shard takes four bytes; only shards with failures take more. last: shards to try after all others.
    """

    def __init__(self, shards: Iterable[int], last: Collection[int], max_attempts: int, rng: random.Random) -> None:
        self.max_attempts = max_attempts
        fresh = array("I", (shard for shard in shards if shard not in last))
        rng.shuffle(fresh)
        self._fresh = array("I", sorted(last)) + fresh  # taken from the end
        self._troubled: dict[int, Trouble] = {}
        self._again: list[Trouble] = []
        self.given_up: dict[int, Trouble] = {}

    def __len__(self) -> int:
        return len(self._fresh) + len(self._again)

    def pop(self, runner: Runner, others: Sequence[Runner], now: float) -> int | None:
        """A shard for this runner. A failed shard goes to the runner that is most unlike those on which it failed."""
        for trouble in self._again:
            if trouble.due <= now and all(trouble.distance(runner) >= trouble.distance(other) for other in others):
                self._again.remove(trouble)
                return trouble.shard
        return self._fresh.pop() if self._fresh else None

    def due(self, now: float) -> int:
        """Number of shards that could be handed out now."""
        return len(self._fresh) + sum(trouble.due <= now for trouble in self._again)

    def put_back(self, shard: int) -> None:
        """Return a shard that is not to blame. It is the next one."""
        if trouble := self._troubled.get(shard):
            self._again.append(trouble)
        else:
            self._fresh.append(shard)

    def failed(self, shard: int, runner: Runner, blame: Blame, cause: str, now: float, final: bool = False) -> Trouble:
        """Note a failed attempt of a shard, which is then tried again or, after max_attempts or if ``final``, given up.

        The loss of a machine uses up no attempt, and the storage's failures are counted by themselves.
        """
        trouble = self._troubled.setdefault(shard, Trouble(shard))
        trouble.blame, trouble.cause = blame, cause
        if blame is Blame.SYSTEM:
            self._again.append(trouble)
            return trouble
        if blame is Blame.STORAGE:
            trouble.storage += 1
            trouble.due = now + min(STORAGE_DELAY_S * 2 ** (trouble.storage - 1), LONGEST_DELAY_S)
        else:
            trouble.charged += 1
            trouble.runners.append(runner)
        if final or max(trouble.charged, trouble.storage) >= self.max_attempts:
            self.given_up[shard] = trouble
        else:
            self._again.append(trouble)
        return trouble

    def made(self, shard: int) -> None:
        """Forget a finished shard's failures."""
        self._troubled.pop(shard, None)
