"""What becomes of attempts: each ends with a look for the shard's marker, whatever the actor said."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from rarefy.errors import OutputError, StorageError, bad
from rarefy.generate.blame import describe
from rarefy.generate.commits import Commits
from rarefy.generate.events import Blame, EventSink, What, tell
from rarefy.generate.loop import Loop
from rarefy.generate.outcome import nothing_works
from rarefy.generate.shard_queue import ShardQueue
from rarefy.generate.tally import Tally
from rarefy.generate.worker import Task, Worker
from rarefy.shards.marker import Marker

IN_A_ROW = 3  # shards given up, and none ever made, after which the run ends; more if max_attempts is more
NO_MARKER = "the actor wrote the marker, but the driver cannot see it"


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a commit. final: another attempt would give the same."""

    blame: Blame
    cause: str
    details: str = ""
    final: bool = False


QUEUED = Failure(Blame.SYSTEM, "")  # a shard that only waited at its actor; nobody needs to be told


class Attempts:
    """Judges attempts, counts them, and gives shards that are not made back to the queue."""

    def __init__(
        self, queue: ShardQueue, tally: Tally, commits: Commits, loop: Loop, listeners: Sequence[EventSink]
    ) -> None:
        self.queue, self.tally, self.commits, self.loop, self.listeners = queue, tally, commits, loop, listeners
        self.open = 0  # attempts whose marker is being looked for
        self.prefix = commits.manifest.prefix
        self._session = uuid.uuid4().hex
        self._started = self._in_a_row = 0

    def start(self, shard: int) -> Task:
        """A new attempt. Its name says which session makes the shard."""
        self._started += 1
        return Task(shard, f"{self._session}-{self._started}")

    def ended(self, task: Task, worker: Worker, failure: Failure | None) -> None:
        """An attempt has ended, or its actor is lost. In any case the shard is done if its marker is there."""
        self.open += 1
        if failure is None:
            self.tally.checking += self.tally.rows(task.shard)
        future = self.commits.find(task.shard, expected=failure is None)
        self.loop.when_done(future, partial(self._checked, task, worker, failure))

    def _checked(self, task: Task, worker: Worker, failure: Failure | None, future: Future[Marker | None]) -> None:
        self.open -= 1
        if failure is None:
            self.tally.checking -= self.tally.rows(task.shard)
        try:
            marker = future.result()
        except StorageError as error:
            self._failed(task, worker, Failure(Blame.STORAGE, describe(error)))
            return
        if marker is not None:
            self._in_a_row = 0
            self.queue.made(task.shard)
            self.tally.made(task.shard, by_us=marker.attempt.startswith(self._session))
        elif failure is None and not self.tally.seen:
            allowed = f"shared by all machines: {NO_MARKER}"
            raise OutputError(bad("out", self.commits.store.root, allowed))
        else:
            self._failed(task, worker, failure or Failure(Blame.STORAGE, NO_MARKER))

    def _failed(self, task: Task, worker: Worker, failure: Failure) -> None:
        """Give the shard back to the queue, or give it up."""
        if failure is QUEUED:
            self.queue.put_back(task.shard)
            return
        self.tally.retries += 1
        now, queue = self.loop.now, self.queue
        trouble = queue.failed(task.shard, worker.runner, failure.blame, failure.cause, now, failure.final)
        given_up = task.shard in queue.given_up
        what = What.GIVEN_UP if given_up else What.RETRY
        event = worker.event(what, failure.blame, failure.cause, failure.details)
        number = max(trouble.charged, trouble.storage)
        tell(self.listeners, replace(event, shard=task.shard, attempt=task.attempt, number=number))
        if given_up:
            self._in_a_row += 1
            # In a resumed run, shards that ran out of candidates are expected: earlier sessions gave them up, too.
            hopeless = not self.tally.seen and not (failure.final and self.tally.committed)
            if hopeless and self._in_a_row >= max(queue.max_attempts, IN_A_ROW):
                raise nothing_works(self.prefix, self._in_a_row, trouble)
