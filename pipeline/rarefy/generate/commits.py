"""The driver's storage calls. They run in threads, so that a slow one stalls neither actors nor other shards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

from rarefy.errors import ShardError
from rarefy.generate.worker import Weights
from rarefy.manifest import Manifest, model_file
from rarefy.plan import estimate_bytes, make_plan, shard_name
from rarefy.shards.claim import claim_output
from rarefy.shards.marker import Marker, read_committed
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store

THREADS = 16
LOOKS_S = (0.0, 1.0, 4.0, 10.0, 20.0)  # pauses before looking for a new marker: NFS may hide a new file for a while
EARLIER = 3  # at most so many earlier shards are asked for their weights: seal reports damaged ones

Result = TypeVar("Result")


class StorageThreads:
    """A pool of daemon threads: unlike an executor's, a call that hangs does not keep the process from ending."""

    def __init__(self, threads: int = THREADS) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"storage-{number}", daemon=True).start()
        self._threads = threads

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Run ``call`` in a thread. The future has its result or its exception."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                result = call()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._calls.put(run)
        return future

    def close(self) -> None:
        """Let idle threads end. Calls that have not begun are still run."""
        for _ in range(self._threads):
            self._calls.put(_stop)

    def _work(self) -> None:
        while (call := self._calls.get()) is not _stop:
            call()


def _stop() -> None:
    """Ends a thread that takes it."""


class Commits:
    """Claims the output and finds out which shards are committed."""

    def __init__(self, manifest: Manifest, store: Store, sleep: Callable[[float], None] = time.sleep) -> None:
        self.manifest, self.store, self._sleep = manifest, store, sleep
        self._threads = StorageThreads()

    def claim(self, earlier: Sequence[int]) -> Future[Weights | None]:
        """Claim the output; returns the weights of earlier shards, None if there are none or all are damaged."""
        return self._threads.submit(lambda: self._claim(earlier))

    def find(self, shard: int, expected: bool) -> Future[Marker | None]:
        """The shard's marker, or None. expected: an actor has said that it is there."""
        return self._threads.submit(lambda: self._find(shard, LOOKS_S if expected else LOOKS_S[:1]))

    def check_writable(self) -> Future[None]:
        """Done if this machine can write another shard; otherwise the future raises OutputError or StorageError."""
        need_bytes = estimate_bytes(self.manifest) // make_plan(self.manifest).num_shards
        return self._threads.submit(lambda: self.store.check_writable(need_bytes))

    def close(self) -> None:
        self._threads.close()

    def _claim(self, earlier: Sequence[int]) -> Weights | None:
        manifest = self.manifest
        claim_output(self.store, manifest.text, manifest.digest, model_file(manifest))
        for shard in earlier:
            with suppress(ShardError):
                record = read_records(self.store, shard_name(manifest.prefix, shard))[0]
                return record.checkpoint_sha256, record.classifier_sha256
        return None

    def _find(self, shard: int, pauses_s: Iterable[float]) -> Marker | None:
        name = shard_name(self.manifest.prefix, shard)
        for pause_s in pauses_s:
            if pause_s:
                self._sleep(pause_s)
            if marker := read_committed(self.store, name, self.manifest.digest):
                return marker
        return None
