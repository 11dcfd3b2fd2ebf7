"""The driver's loop: replies of actors, storage and cluster come through one inbox and are handled in one thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from rarefy.generate.limits import DriverClock

Result = TypeVar("Result")


class Loop:
    """An inbox and a clock. now: the time at which the present message is handled."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or DriverClock()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.now = self._clock()

    def post(self, call: Callable[[], None]) -> None:
        """Have ``call`` run in the loop; from any thread."""
        self._inbox.put(call)

    def when_done(self, future: Future[Result], handle: Callable[[Future[Result]], None]) -> None:
        """Have ``handle(future)`` run in the loop when the future is done."""
        future.add_done_callback(lambda done: self.post(lambda: handle(done)))

    def turn(self, timeout_s: float) -> None:
        """Handle all messages that are there, waiting for the first."""
        try:
            call = self._inbox.get(timeout=max(timeout_s, 0.001))
        except Empty:
            self.now = self._clock()
            return
        self.now = self._clock()
        for _ in range(self._inbox.qsize()):
            call()
            call = self._inbox.get()
        call()
