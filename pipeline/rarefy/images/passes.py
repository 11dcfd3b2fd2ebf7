"""Work on many images in threads, with results in order and progress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rarefy.cores import usable_cores
from rarefy.images.items import Item

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with the number of images done and their total."""

CHUNK = 32  # images per task
MAX_THREADS = 32


def in_order(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None = None
) -> Iterator[Result]:
    """The results for all items, in order. At most a few hundred results wait for the caller.

    Decoders release Python's global lock, so threads decode large images in parallel.
    """
    threads = min(usable_cores(), MAX_THREADS)
    waiting: deque[Future[list[Result]]] = deque()
    starts, done = iter(range(0, len(items), CHUNK)), 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                while len(waiting) < 2 * threads and (start := next(starts, None)) is not None:
                    waiting.append(pool.submit(_each, function, items[start : start + CHUNK]))
                if not waiting:
                    return
                results = waiting.popleft().result()
                yield from results
                done += len(results)
                if progress is not None:
                    progress(done, len(items))
        finally:
            for future in waiting:
                future.cancel()


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
