"""Hands out shards to actors until all are committed. Only the markers in the output say which shards are done."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from rarefy.errors import ExhaustedError, OutputError, StorageError, bad
from rarefy.generate.actor import Snapshot
from rarefy.generate.attempts import QUEUED, Attempts, Failure
from rarefy.generate.blame import describe, full_text, real_cause
from rarefy.generate.commits import EARLIER, Commits
from rarefy.generate.events import Blame, EventSink
from rarefy.generate.fit import Machine, Resources
from rarefy.generate.head import SILENT_S, HeadWatch, check_head, check_own_machine
from rarefy.generate.limits import Patience
from rarefy.generate.loop import Loop
from rarefy.generate.outcome import missing_shards
from rarefy.generate.progress import ProgressSink, Status
from rarefy.generate.shard_queue import ShardQueue
from rarefy.generate.staff import Staff, blame_of
from rarefy.generate.tally import Tally
from rarefy.generate.worker import IN_FLIGHT, Cluster, Place, Task, Weights, Worker
from rarefy.manifest import Manifest
from rarefy.plan import make_plan
from rarefy.shards.marker import Marker
from rarefy.shards.store import Store

TICK_S = 1.0  # between two looks at the actors, and between two calls of the progress sink
POLL_S = 0.005  # per actor, between two polls of one: of a thousand actors each is asked every 5 seconds


@dataclass(frozen=True)
class Limits:
    """storage_s: how long storage calls are repeated; shard_s: most time for a shard; max_attempts: per shard."""

    storage_s: float
    shard_s: float | None = None
    max_attempts: int = 3


class Fleet:
    """One session's queue, workers and counts. listeners: get every event as it happens."""

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        cluster: Cluster,
        resources: Resources,
        limits: Limits,
        listeners: Sequence[EventSink] = (),
    ) -> None:
        self.manifest, self.limits, self.listeners = manifest, limits, listeners
        self.cluster, self.plan, self.loop = cluster, make_plan(manifest), Loop()
        self.patience = Patience(limits.storage_s, limits.shard_s)
        self.staff = Staff(cluster, resources, limits.max_attempts, listeners)
        self.commits = Commits(manifest, store)
        self.weights: Weights | None = None
        self._claiming = False
        self._heard_s = self._ticked_s = self.loop.now

    def finish(self, done: Collection[int], last: Collection[int], progress: ProgressSink) -> Tally:
        """Make every shard that is not ``done``, those of ``last`` after all others.

        Raises ShardError or TemporaryError, which name the missing shards, or the user's error that ended the run.
        """
        self._prepare(done, last)
        watch = HeadWatch(self.cluster.machines, lambda machines: self.loop.post(partial(self._heard, machines)))
        try:
            while self.attempts.open or self.queue or any(worker.tasks for worker in self.staff.workers):
                self._turn(progress)
            self.staff.wanted = 0
            progress(self._status())
        finally:
            watch.stop()
            self.commits.close()
            for worker in list(self.staff.workers):
                self.staff.remove(worker)
        if self.queue.given_up:
            raise missing_shards(self.manifest.prefix, self.plan.num_shards, self.queue.given_up.values())
        return self.tally

    def _prepare(self, done: Collection[int], last: Collection[int]) -> None:
        left = (shard for shard in range(self.plan.num_shards) if shard not in done)
        self.queue = ShardQueue(left, set(last) - set(done), self.limits.max_attempts, random.Random())
        self.tally = Tally(self.plan, done)
        self.attempts = Attempts(self.queue, self.tally, self.commits, self.loop, self.listeners)
        self._earlier = sorted(done)[:EARLIER]

    def _turn(self, progress: ProgressSink) -> None:
        self._feed()
        self.loop.turn(self._ticked_s + TICK_S - self.loop.now)
        if self.loop.now - self._ticked_s >= TICK_S:
            self._ticked_s = self.loop.now
            check_head(self.loop.now - self._heard_s)
            self._poll()
            self._expire()
            self._recruit()
            self.staff.wait(self.loop.now)
            progress(self._status())

    def _heard(self, machines: Sequence[Machine]) -> None:
        """The head has answered."""
        first = not self.staff.nodes.machines
        self._heard_s = self.loop.now
        self.staff.nodes.update(machines)
        if first:
            self._recruit()

    def _recruit(self) -> None:
        """Ask for missing actors, unless the head is silent: then Ray's calls may block."""
        left = len(self.queue) + self.attempts.open + sum(len(worker.tasks) for worker in self.staff.workers)
        if self.loop.now - self._heard_s < SILENT_S:
            for worker in self.staff.recruit(left, self.loop.now):
                self.loop.when_done(worker.handle.locate(), partial(self._located, worker))

    def _located(self, worker: Worker, future: Future[Place]) -> None:
        if worker.gone:
            return
        if (error := future.exception()) is not None:
            self._failed(worker, error)
            return
        worker.located(future.result(), self.loop.now)
        # Not earlier: when loading fails, the machine must be known.
        self.loop.when_done(worker.handle.load(), partial(self._loaded, worker))

    def _loaded(self, worker: Worker, future: Future[Weights]) -> None:
        if worker.gone:
            return
        if (error := future.exception()) is not None:
            self._failed(worker, error)
            return
        worker.weights, self.staff.loaded = future.result(), True
        if not self._claiming:
            self._claiming = True
            self.loop.when_done(self.commits.claim(self._earlier), partial(self._claimed, worker.weights))
        elif self.weights is not None:
            self._admit(worker)

    def _claimed(self, weights: Weights, future: Future[Weights | None]) -> None:
        """The output is ours. From now on actors get shards if they have the weights of the run's other shards."""
        self.weights = future.result() or weights
        for worker in list(self.staff.workers):
            if worker.weights is not None:
                self._admit(worker)

    def _admit(self, worker: Worker) -> None:
        assert worker.weights is not None and self.weights is not None
        if worker.weights == self.weights:
            self.tally.first_ready = self.tally.first_ready or self.loop.now
            self.staff.works(worker, self.loop.now)
            return
        allowed = f"the weights of the run's other shards, {_joined(self.weights)}"
        error = OutputError(bad("weights", _joined(worker.weights), allowed))
        if all(other.weights != self.weights for other in self.staff.workers):
            raise error
        self.staff.failed(worker, error, Blame.NODE, self.loop.now)

    def _feed(self) -> None:
        """Give every ready actor one shard, then a second one if enough remain for the other actors.

        So near the end no actor queues a shard that an idle one could generate. A single actor always gets its next.
        """
        waiting, ready = self.queue.due(self.loop.now), self.staff.ready
        runners = [worker.runner for worker in ready]
        for depth in range(IN_FLIGHT):
            for worker in ready:
                if waiting <= (len(ready) - 1 if depth else 0):
                    return
                if len(worker.tasks) == depth:
                    shard = self.queue.pop(worker.runner, runners, self.loop.now)
                    if shard is not None:
                        waiting -= 1
                        self._assign(worker, shard)

    def _assign(self, worker: Worker, shard: int) -> None:
        task = self.attempts.start(shard)
        worker.take(task, self.loop.now)
        self.loop.when_done(worker.handle.generate(task.shard, task.attempt), partial(self._replied, worker, task))

    def _replied(self, worker: Worker, task: Task, future: Future[Marker]) -> None:
        if worker.gone:
            return
        if (error := future.exception()) is not None:
            self._failed(worker, error, task)
            return
        worker.finished(task, self.loop.now)
        self.staff.nodes.succeeded(worker.runner.node, worker.asked_s, shard=True)
        self.attempts.ended(task, worker, None)

    def _failed(self, worker: Worker, error: BaseException, task: Task | None = None) -> None:
        """A call raised. Whose fault it is decides what happens; a user's error ends the run."""
        check_own_machine(error)
        cause = real_cause(error)
        blame = blame_of(worker, error, self.tally.seen if worker.ready else self.staff.may_load(worker))
        if blame is Blame.USER:
            raise cause
        if isinstance(cause, OutputError) and not isinstance(cause, StorageError):
            # If this machine cannot write either, the output is at fault and not the actor's machine.
            self.loop.when_done(self.commits.check_writable(), lambda checked: checked.result())
        failure = Failure(blame, describe(cause), full_text(error), final=isinstance(cause, ExhaustedError))
        if task is not None and blame in (Blame.SHARD, Blame.STORAGE):
            worker.finished(task, self.loop.now)
            self.attempts.ended(task, worker, failure)
        else:
            self._lose(worker, error, failure, task)

    def _lose(self, worker: Worker, error: BaseException, failure: Failure, task: Task | None) -> None:
        """End an actor. The shard that it was making, by default the oldest, is charged; the one that waited is not."""
        running = task or next(iter(worker.tasks), None)
        for each in worker.tasks:
            self.attempts.ended(each, worker, failure if each is running else QUEUED)
        worker.tasks.clear()
        self.tally.lost(worker)
        self.staff.failed(worker, error, failure.blame, self.loop.now)
        self._recruit()

    def _poll(self) -> None:
        """Ask actors for their counts, without waiting for the answers."""
        every_s = POLL_S * len(self.staff.workers)
        for worker in self.staff.workers:
            if worker.place and not worker.polling and self.loop.now - worker.polled_s >= every_s:
                worker.polling, worker.polled_s = True, self.loop.now
                self.loop.when_done(worker.handle.progress(), partial(self._polled, worker))

    def _polled(self, worker: Worker, future: Future[Snapshot]) -> None:
        worker.polling = False
        if worker.gone:
            return
        if (error := future.exception()) is not None:
            self._failed(worker, error)
        elif (interval_s := worker.reported(future.result(), self.loop.now)) is not None:
            self.patience.advanced(interval_s)

    def _expire(self) -> None:
        """End actors that hang."""
        for worker in list(self.staff.workers):
            if verdict := self.patience.verdict(worker, self.loop.now):
                self._lose(worker, TimeoutError(verdict), Failure(Blame.ACTOR, verdict), None)

    def _status(self) -> Status:
        return self.tally.status(self.staff.workers, self.staff.wanted, self.loop.now)


def _joined(weights: Weights) -> str:
    return " ".join(sha256 or "without classifier" for sha256 in weights)
