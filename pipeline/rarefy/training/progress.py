"""Lines on stderr: what a run does, and how far it is with passes that take long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rarefy.training.data import place

EVERY_S = 5.0


def say(line: str) -> None:
    """Print a line about the run; under torchrun only one process does."""
    if place()[0] == 0:
        print(f"train: {line}", file=sys.stderr, flush=True)


def progress(stage: str) -> Callable[[int, int], None]:
    """A function of (done, total) that prints a line every 5 s; a short pass prints none."""
    last = time.monotonic()

    def step(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= EVERY_S:
            last = now
            say(f"{stage} {done:,}/{total:,}")

    return step


def tracked(stage: str, parts: Sequence[slice]) -> Iterator[slice]:
    """The parts of a pass, one after the other, with its progress."""
    step = progress(stage)
    for part in parts:
        yield part
        step(part.stop, parts[-1].stop)
