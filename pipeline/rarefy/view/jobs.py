"""Trajectories in the background: one at a time, with progress, and the last ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rarefy.errors import RarefyError
from rarefy.shards.retry import one_line
from rarefy.shards.store import Store
from rarefy.view.origin import Origin, Trajectory

if TYPE_CHECKING:  # torch is loaded for the first trajectory only
    from rarefy.view.trajectory import Sampler

MOST_KEPT = 8
NEEDS_TORCH = "a trajectory needs torch: pip install 'rarefy[run]'"


class _StoppedError(Exception):
    """The server ends."""


@dataclass
class Job:
    """One image that is made again. done, total: steps; total is 0 while it waits and while networks are loaded."""

    done: int = 0
    total: int = 0
    result: Future[Trajectory] = field(default_factory=Future)

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return self.result.done() and self.result.exception() is None

    @property
    def error(self) -> str:
        """One line; empty while it runs and when it has succeeded."""
        cause = self.result.exception() if self.result.done() else None
        return "" if cause is None else one_line(cause)


class Trajectories:
    """Makes trajectories in one thread. make_sampler: loads the networks, when they are first needed."""

    def __init__(self, make_sampler: Callable[[], Sampler]) -> None:
        self._make_sampler = make_sampler
        self._sampler: Sampler | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trajectory")

    def job(self, origin: Origin) -> Job:
        """The job of this image, begun now unless it was begun before. One that failed is tried again."""
        with self._lock:
            job = self._jobs.get(origin.key)
            if job is None or job.error:
                job = self._jobs[origin.key] = Job()
                self._pool.submit(self._work, job, origin)
            self._jobs.move_to_end(origin.key)
            while len(self._jobs) > MOST_KEPT:
                self._jobs.popitem(last=False)
            return job

    def known(self, key: str) -> Job | None:
        """The job of this image if it was begun and is still kept."""
        with self._lock:
            return self._jobs.get(key)

    def close(self) -> None:
        """End the running one after its step."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, job: Job, origin: Origin) -> None:
        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total
            if self._stop.is_set():
                raise _StoppedError

        try:
            self._sampler = self._sampler or self._make_sampler()
            job.result.set_result(self._sampler.trace(origin, progress))
        except (RarefyError, _StoppedError, RuntimeError, MemoryError) as cause:  # torch raises RuntimeError
            job.result.set_exception(cause)


def sampler_of(store: Store, device: str, model: str | None, allow_plugins: bool) -> Sampler:
    """A sampler of the run. Raises RarefyError if torch is not installed, and what ``Sampler`` raises."""
    try:
        from rarefy.view.trajectory import Sampler
    except ModuleNotFoundError as cause:
        if cause.name is None or cause.name.startswith("rarefy"):
            raise
        raise RarefyError(NEEDS_TORCH) from cause
    return Sampler(store, device, model, allow_plugins)
