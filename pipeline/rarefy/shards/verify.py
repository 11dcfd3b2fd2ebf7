"""Checks a whole run, many shards at once and none of them kept in memory."""

from __future__ import annotations

import io
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import replace
from multiprocessing import get_context, parent_process
from typing import BinaryIO

from rarefy.cores import usable_cores
from rarefy.errors import OutputError, StorageError, bad
from rarefy.shards.check import Checked, check_shard
from rarefy.shards.index import (
    FORMER_LISTING,
    INDEX,
    SUCCESS,
    Comparison,
    DataSetFiles,
    check_success,
    is_sealed,
    listing_path,
)
from rarefy.shards.local import open_file
from rarefy.shards.spec import RunSpec, ShardSpec
from rarefy.shards.store import Store

Progress = Callable[[int, int], None]
CARD = "README.md"
STRANGE = "not part of this plan; move it elsewhere"
THREADS = 8  # for object stores, where most time is spent waiting
SAMPLES_AT_ONCE = 512  # that one task of a process or thread checks, about a second's work
FEW_SAMPLES = 4096  # checked sooner by this process than others start
AHEAD = 2  # tasks waiting for each process or thread


def verify(store: Store, run: RunSpec, progress: Progress | None = None) -> dict[str, list[str]]:
    """Problems by shard name or by file; empty if everything that the plan and ``_SUCCESS`` promise is there and whole.

    Called from a script, this needs the usual ``if __name__ == "__main__":``, because large local runs are checked by
    several processes.
    """
    problems: dict[str, list[str]] = {}
    with ExitStack() as stack:
        sealed = _SealedFiles(store, run, stack) if is_sealed(store) else None
        for checked in check_shards(store, run, progress=progress):
            if checked.problems:
                problems[checked.name] = list(checked.problems)
            if sealed:
                sealed.add(checked)
        problems |= {rel: [STRANGE] for rel in strangers(store, run)}
        return problems | (sealed.problems() if sealed else {})


def check_shards(
    store: Store, run: RunSpec, workers: int | None = None, progress: Progress | None = None
) -> Iterator[Checked]:
    """The results for all planned shards, in order. All must have the weights of the first intact one.

    workers: processes for a local store, threads for an object store; None chooses. progress(done, total): of shards.
    Raises OutputError if the store
    cannot be read at the moment.
    """
    first: Checked | None = None
    with closing(_check_each(store, run, workers)) as each:
        for number, checked in enumerate(each):
            if progress:
                progress(number, len(run.shards))
            if checked.weights is not None:
                first = first or checked
                if checked.weights != first.weights:
                    problem = f"its images were made with other weights than those of {first.name}"
                    checked = replace(checked, problems=(problem,), contradicts_plan=True)
            yield checked
    if progress:
        progress(len(run.shards), len(run.shards))


def _check_each(store: Store, run: RunSpec, workers: int | None) -> Generator[Checked]:
    samples = sum(run.counts.values())
    if workers is None:
        many = usable_cores() if samples > FEW_SAMPLES else 1
        workers = many if store.is_local else THREADS
    each = max(1, min(SAMPLES_AT_ONCE * len(run.shards) // samples, len(run.shards) // (AHEAD * workers)))
    ranges = [range(first, first + each) for first in range(0, len(run.shards), each)]
    if workers == 1:
        for part in ranges:
            yield from _check_range(store, run.shards, run.digest, part)
        return
    pool = _processes(workers) if store.is_local else ThreadPoolExecutor(workers)
    try:
        yield from _in_order(pool, workers * AHEAD, store, run, ranges)
    except BrokenProcessPool as cause:
        allowed = "checked: a process that checked shards was killed, perhaps because the memory was full"
        raise OutputError(bad("out", store.root, allowed)) from cause
    finally:
        pool.shutdown(cancel_futures=True)


def strangers(store: Store, run: RunSpec) -> Iterator[str]:
    """Files that look like shards, rows or markers of this run but are not in its plan."""
    prefix = re.escape(run.shards[0].name.rpartition("-")[0])
    for folder, ending, every in (("shards", "tar", True), ("metadata", "parquet", True), ("state", "json", False)):
        for name in store.list(folder):
            number = re.fullmatch(rf"{prefix}-(\d+)\.{ending}", name)
            planned = number is not None and len(number[1]) == 6 and int(number[1]) < len(run.shards)
            # state/ also has the driver's own files.
            if not planned and (every or number) and f"{folder}/{name}" != FORMER_LISTING:
                yield f"{folder}/{name}"


class _SealedFiles:
    """The files that ``seal`` wrote, compared with the markers while these are read."""

    def __init__(self, store: Store, run: RunSpec, stack: ExitStack) -> None:
        self.store, self.run = store, run
        listing = listing_path(store)
        streams = {rel: _open(store, rel, stack) for rel in (INDEX, listing)}
        self.missing = [rel for rel, stream in streams.items() if stream is None]
        self.files = {rel: Comparison(stream, rel == listing) for rel, stream in streams.items() if stream}
        sinks = [self.files.get(rel) or Comparison(io.BytesIO()) for rel in (INDEX, listing)]
        self.writer = DataSetFiles(run, *sinks)
        self.complete = True

    def add(self, checked: Checked) -> None:
        if checked.marker is None:
            self.complete = False
        else:
            self.writer.add(checked.marker)

    def problems(self) -> dict[str, list[str]]:
        """Problems by file. Without every marker, the contents of the index cannot be judged."""
        self.writer.end()
        advice = f"; {self.run.sealed_by} writes it again"
        found = {rel: [f"missing or unreadable, although the run is sealed{advice}"] for rel in self.missing}
        if self.complete:
            wrong = [rel for rel, file in self.files.items() if not file.at_end()]
            found |= {rel: [f"does not describe these shards{advice}"] for rel in wrong}
        if not self.store.exists(CARD):
            found[CARD] = [f"missing, although the run is sealed{advice}"]
        if problem := check_success(self.store, self.run):
            found[SUCCESS] = [problem + advice]
        return found


def _open(store: Store, rel: str, stack: ExitStack) -> BinaryIO | None:
    """The file, open until the stack is closed; None if it is missing or unreadable."""
    try:
        path = stack.enter_context(store.local_copy(rel))
        return stack.enter_context(open_file(path))
    except StorageError:
        raise  # it says nothing about the file
    except (OSError, OutputError):
        return None


def _processes(workers: int) -> Executor:
    """Processes that are started anew, because a fork would copy locks that other threads hold."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare_process)


def _prepare_process() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_order(pool: Executor, ahead: int, store: Store, run: RunSpec, ranges: Sequence[range]) -> Iterator[Checked]:
    waiting: deque[Future[list[Checked]]] = deque()
    for part in ranges:
        waiting.append(pool.submit(_check_range, store, run.shards, run.digest, part))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _check_range(store: Store, shards: Sequence[ShardSpec], digest: str, part: range) -> list[Checked]:
    return [check_shard(store, spec, digest) for spec in shards[part.start : part.stop]]
