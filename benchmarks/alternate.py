"""Long jobs by turns, some seconds each: a machine that others slow down is then as slow for one as for the other.

Calls that are short enough to take turns whole: ``turns``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from rarefy.bench.processes import family

TURN_S = 5.0


@dataclass
class Job:
    """A call in a process of its own. awake: when it and all processes below it could run, monotonic."""

    pid: int
    future: Future[Any]
    awake: list[tuple[float, float]] = field(default_factory=list)

    def seconds(self, start: float, end: float) -> float:
        """Of the time between two moments, what it could run in."""
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in self.awake)

    def take_turn(self) -> None:
        """Run until the turn is over or the job done."""
        start = time.monotonic()
        _signal(self.pid, signal.SIGCONT)
        wait([self.future], timeout=TURN_S)
        if not self.future.done():
            _signal(self.pid, signal.SIGSTOP)
        self.awake.append((start, time.monotonic()))


def alternately(*calls: Sequence[Any]) -> list[Job]:
    """Run every (function, arguments) in a fresh process, one at a time, until all are done. Raises what they raise."""
    with ExitStack() as stack:
        jobs = []
        for function, *arguments in calls:
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")))
            pid = pool.submit(os.getpid).result()
            os.kill(pid, signal.SIGSTOP)
            stack.callback(_signal, pid, signal.SIGCONT)  # whatever happens, before its pool is waited for
            jobs.append(Job(pid, pool.submit(function, *arguments)))
        while waiting := [job for job in jobs if not job.future.done()]:
            for job in waiting:
                job.take_turn()
    for job in jobs:
        job.future.result()
    return jobs


def _signal(pid: int, number: int) -> None:
    """To the process and all below it; twice, for those that are started between."""
    for _ in range(2):
        for process in family(pid):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
