"""Time limits that follow from the run itself: an actor whose work stands still for far too long hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

from rarefy.generate.worker import Worker

START_S = 900.0  # for loading the models and the first sign of progress, which includes compiling
STILL_S = 300.0  # an actor may always stand still for this long
STILL_FACTOR = 20.0  # times the longest interval between two signs of progress in this run
LONGEST_STEP_S = 5.0  # more than this between two readings means that the driver itself was stopped


class DriverClock:
    """Seconds of this process's own running time.

    While the driver is stopped (SIGSTOP, a suspended laptop) nobody reads the actors' progress, so this time must not
    count against them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last, self._now = clock(), 0.0

    def __call__(self) -> float:
        reading = self._clock()
        self._now += min(max(reading - self._last, 0.0), LONGEST_STEP_S)
        self._last = reading
        return self._now


class Patience:
    """How long an actor's work may stand still. storage_s: time that storage calls may take until they give up."""

    def __init__(self, storage_s: float, shard_s: float | None) -> None:
        self.storage_s, self.shard_s = storage_s, shard_s
        self.longest_s = 0.0

    def advanced(self, interval_s: float) -> None:
        """An actor made progress, so long after its last."""
        self.longest_s = max(self.longest_s, interval_s)

    def verdict(self, worker: Worker, now: float) -> str | None:
        """Why an actor is held to hang, or None."""
        if not worker.busy:
            return None
        if self.shard_s is not None and worker.tasks and now - worker.began_s > self.shard_s:
            return f"the shard was not finished in {self.shard_s:g} s (--shard-timeout)"
        limit = max(STILL_S, STILL_FACTOR * self.longest_s) if worker.moving else START_S
        limit += self.storage_s
        return f"no progress in {limit:.0f} s" if now - worker.advanced_s > limit else None
