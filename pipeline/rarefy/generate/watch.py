"""Tells of a run while it goes on: on the terminal, in files of the output, and in Ray's metrics.

Nothing here may end or delay a run. A thread of its own writes the files; a failure to write them is told once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import ray

from rarefy.errors import OutputError, RarefyError
from rarefy.generate.account import SessionAccount
from rarefy.generate.actor_logs import actor_output
from rarefy.generate.driver import FAILURES, GenerateOptions
from rarefy.generate.driver_file import (
    BEAT_S,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    DriverFile,
    driver_path,
    read_driver_files,
    still_missing,
)
from rarefy.generate.event_lines import EventLines, RunNames
from rarefy.generate.events import Event, EventSink, What
from rarefy.generate.metrics import RunMetrics
from rarefy.generate.progress import ProgressLine, Status, json_line
from rarefy.manifest import Manifest
from rarefy.shards.claim import RUN_FILE
from rarefy.shards.listing import committed_numbers
from rarefy.shards.store import Store

LOGS = "logs"
PATIENCE_S = 20.0  # for the storage; the next heartbeat tries again
SPACING_S = 1.0  # between two versions of the files when events come thick and fast
CLAIM_S = 5.0  # between looks whether the output belongs to this run yet; nothing is written before
KEPT_LOGS = 100  # actors' logs that one driver leaves
END_S = 10.0  # for the last files, when the run is over


class Watch:
    """Watches one session. Use it as a context manager; the files are complete when it ends.

    progress and listeners are what :func:`rarefy.generate.driver.generate` takes; metrics: also record Ray metrics.
    """

    def __init__(self, store: Store, digest: str, names: RunNames, line: ProgressLine, metrics: bool) -> None:
        self.store, self.digest, self.names, self.line = store, digest, names, line
        self._lines = EventLines(names, line.note, line.as_json)
        self.listeners: tuple[EventSink, ...] = (self._lines, self._account_for)
        self._wants_metrics = metrics
        self._metrics: RunMetrics | None = None
        self._started = time.time()
        self._account, self._lock = SessionAccount(), threading.Lock()
        self._state, self._error = RUNNING, ""
        self._lost: deque[Event] = deque()
        self._logs = self._failures = 0
        self._claimed = self._told = False
        self._ends, self._wakes = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="watch", daemon=True)

    def progress(self, status: Status) -> None:
        """Show and remember a status."""
        self.line(status)
        with self._lock:
            self._account.status = status
        if metrics := self._connected_metrics():
            metrics.status(status)

    def notice(self, text: str) -> None:
        """Show a line about the run as a whole, such as what happened between two stages."""
        plain = f"run: {text}"
        self.line.note(json_line("notice", {"run": self.names.run, "text": text}) if self.line.as_json else plain)

    def _account_for(self, event: Event) -> None:
        with self._lock:
            self._account.add(event, self.names)
        if metrics := self._connected_metrics():
            metrics.event(event)
        if event.what is What.ACTOR_LOST:
            self._lost.append(event)
        if event.what in (What.ACTOR_LOST, What.GIVEN_UP, What.ACTOR_READY):
            self._wakes.set()

    def _connected_metrics(self) -> RunMetrics | None:
        if self._metrics is None and self._wants_metrics and ray.is_initialized():
            self._metrics = RunMetrics(self.names.run, self.names.driver)
        return self._metrics

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            name = "" if isinstance(error, RarefyError) else f"{type(error).__name__}: "
            self._state, self._error = FAILED, " ".join(f"{name}{error}".split())
        else:
            self._state = FINISHED if error is None else INTERRUPTED
        self._ends.set()
        self._wakes.set()
        self._thread.join(END_S)
        self._lines.close()

    def _keep_writing(self) -> None:
        while True:
            self._wakes.wait(BEAT_S if self._claimed else CLAIM_S)
            self._wakes.clear()
            ends = self._ends.is_set()
            try:
                self._write(ends)
            except OutputError as error:
                if self._claimed and not self._told:  # before that the run itself meets the error
                    self._told = True
                    self.notice(f"it goes on, but its files for rarefy status fail: {error}")
            if ends:
                return
            self._ends.wait(SPACING_S)

    def _write(self, ends: bool) -> None:
        """Write what is new, if the output belongs to this run already."""
        texts = [(event, self._log_of(event)) for event in self._taken()]
        self._claimed = self._claimed or self._is_claimed()
        if not self._claimed:
            self._lost.extendleft(event for event, _ in reversed(texts))
            return
        for event, text in texts:
            if text and event.actor is not None and self._logs < KEPT_LOGS:
                self._logs += 1
                self.store.write_bytes(f"{LOGS}/{_file_name(event.actor)}.log", text.encode())
        with self._lock:
            content, events = self._file(), list(self._account.events)
        self.store.write_bytes(driver_path(self.names.driver), content.to_json())
        if events:
            self.store.write_bytes(f"{LOGS}/{self.names.driver}.jsonl", "\n".join([*events, ""]).encode())
        if len(content.given_up) > self._failures or (ends and (self._failures or self.store.exists(FAILURES))):
            self._failures = len(content.given_up)
            there = committed_numbers(self.store, self.names.prefix)
            rows = [dataclasses.asdict(row) for row in still_missing(read_driver_files(self.store), there)]
            self.store.write_bytes(FAILURES, json.dumps(rows, indent=1).encode() + b"\n")

    def _taken(self) -> list[Event]:
        return [self._lost.popleft() for _ in range(len(self._lost))]

    def _log_of(self, event: Event) -> str:
        """What is known about a lost actor; "" if that is no more than the event's one line."""
        output = actor_output(event.actor) if event.actor is not None else ""
        pieces = [event.details.strip(), output]
        return "\n".join([event.cause, *(piece for piece in pieces if piece), ""]) if any(pieces) else ""

    def _is_claimed(self) -> bool:
        if not self.store.exists(RUN_FILE):
            return False
        try:
            return bool(json.loads(self.store.read_bytes(RUN_FILE))["manifest_digest"] == self.digest)
        except (ValueError, LookupError, TypeError, RecursionError):
            return False  # the run itself refuses such an output

    def _file(self) -> DriverFile:
        account = self._account
        return DriverFile(
            driver=self.names.driver,
            host=platform.node(),
            pid=os.getpid(),
            started_at=self._started,
            written_at=time.time(),
            state=self._state,
            status=None if account.status is None else dataclasses.asdict(account.status),
            actors=dict(account.actors) if self._state == RUNNING else {},
            retries=dict(account.retries),
            causes=tuple(account.causes),
            given_up=tuple(account.given_up.values()),
            waiting=account.waiting if self._state == RUNNING and account.lacks_actors else "",
            error=self._error,
        )


@contextmanager
def watched(manifest: Manifest, options: GenerateOptions, line: ProgressLine) -> Iterator[Watch]:
    """Watch a session of ``generate``, and show it on ``line``. Metrics are for clusters only."""
    names = RunNames(manifest.name, manifest.prefix, new_driver(), options.max_attempts)
    on_cluster = options.ray_address is not None
    store = Store(options.out, PATIENCE_S)
    line.run = manifest.name
    with Watch(store, manifest.digest, names, line, on_cluster) as watch:
        yield watch


def new_driver() -> str:
    """An id for this process; ids sort by the time of the start."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def _file_name(actor: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", actor)
