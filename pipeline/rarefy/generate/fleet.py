"""Hands out shards to Ray actors. Only the markers in the output say which shards are done."""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rarefy.errors import OutputError, RarefyError, ShardError, bad, first_names
from rarefy.generate.actor import ShardGenerator, Snapshot, add_up
from rarefy.generate.fit import Resources
from rarefy.generate.progress import ProgressSink, Status
from rarefy.manifest import Manifest, model_file
from rarefy.plan import make_plan, shard_name, shard_names
from rarefy.shards.claim import claim_output
from rarefy.shards.listing import committed
from rarefy.shards.marker import Marker
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store

TICK_S = 1.0  # between polls of the actors; each poll costs an actor and Ray at least a millisecond
START_S = 900.0  # minimum time limit for getting a machine and loading the models
IN_FLIGHT = 2  # shards per actor: one is sampled, the other is being written or waits
SHOWN = 200  # characters kept of the start and of the end of a message


@dataclass(frozen=True)
class _Task:
    """One attempt at one shard."""

    shard: int
    attempt: str


@dataclass(eq=False)
class _Worker:
    """One actor as the driver sees it. tasks: by Ray reference, oldest first; clock: start time of the oldest."""

    handle: Any
    loading: Any
    clock: float
    ready: bool = False
    tasks: dict[Any, _Task] = field(default_factory=dict)
    poll: Any = None
    snapshot: Snapshot = field(default_factory=Snapshot)


class Fleet:
    """One session's queue, workers and counts. timeout_s, max_attempts: per shard; compile: see rarefy.execution."""

    def __init__(
        self, manifest: Manifest, store: Store, resources: Resources, timeout_s: float, max_attempts: int, compile: str
    ) -> None:
        self.manifest, self.store, self.resources = manifest, store, resources
        self.timeout_s, self.max_attempts, self.compile = timeout_s, max_attempts, compile
        self.plan = make_plan(manifest)
        self.queue: deque[int] = deque()
        self.workers: list[_Worker] = []
        self.attempts: Counter[int] = Counter()
        self.given_up: list[int] = []
        self.resumed = self.committed = 0
        self.earlier: str | None = None
        self.weights: tuple[str, str | None] | None = None
        self.retries = 0
        self.failed_starts = 0
        self.last_cause = ""
        self.gone = Snapshot()
        self.first_ready: float | None = None

    def finish(self, done: Mapping[str, Marker], progress: ProgressSink) -> int:
        """Generate every shard that is not ``done``; returns the number of retries. ShardError names missing shards."""
        self.queue.extend(k for k, name in enumerate(shard_names(self.manifest)) if name not in done)
        self.resumed = self.committed = sum(marker.rows for marker in done.values())
        self.earlier = next(iter(done), None)
        try:
            while self.queue or any(worker.tasks for worker in self.workers):
                self._staff()
                self._feed()
                self._collect()
                self._expire()
                progress(self._status())
        finally:
            for worker in self.workers:
                ray.kill(worker.handle)
        if self.given_up:
            names = [shard_name(self.manifest.prefix, number) for number in sorted(self.given_up)]
            raise ShardError(
                f"{len(names)} of {self.plan.num_shards} shards are missing after {self.max_attempts} attempts "
                f"each: {first_names(names)}; last cause: {self.last_cause}"
            )
        return self.retries

    def _staff(self) -> None:
        """Start missing actors, but never more than there are shards left."""
        left = len(self.queue) + sum(len(worker.tasks) for worker in self.workers)
        actor: Any = ray.remote(ShardGenerator).options(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT + 1,  # one more for progress()
        )
        while len(self.workers) < min(self.resources.actors, left):
            place = self.resources.device, self.resources.cpus
            handle = actor.remote(self.manifest, self.store.root, *place, self.compile)
            self.workers.append(_Worker(handle, handle.load.remote(), time.monotonic()))

    def _feed(self) -> None:
        """Give every ready actor one shard, then a second one if enough remain for the other actors.

        So near the end no actor queues a shard that an idle one could generate. A single actor always gets its next.
        """
        for depth in range(IN_FLIGHT):
            for worker in self.workers:
                enough = len(self.queue) > (len(self.workers) - 1 if depth else 0)
                if worker.ready and len(worker.tasks) == depth and enough:
                    number = self.queue.popleft()
                    if not worker.tasks:
                        worker.clock = time.monotonic()
                    task = _Task(number, uuid.uuid4().hex)
                    worker.tasks[worker.handle.generate.remote(task.shard, task.attempt)] = task

    def _collect(self) -> None:
        """Handle all replies that have arrived, waiting up to TICK_S for the first."""
        owners = {ref: worker for worker in self.workers for ref in worker.tasks}
        owners |= {worker.loading: worker for worker in self.workers if not worker.ready}
        ready, _ = ray.wait(list(owners), timeout=TICK_S)
        for ref in ready:
            worker = owners[ref]
            if worker not in self.workers:
                continue  # lost while an earlier reply of this round was handled
            try:
                self._accept(worker, ref, ray.get(ref))
            except RayTaskError as error:
                self._failed(worker, ref, error)
            except RayError as error:
                self._lose(worker, f"actor died: {_one_line(error)}")

    def _accept(self, worker: _Worker, ref: Any, reply: Any) -> None:
        if ref is worker.loading:
            self._check_weights(reply)
            worker.ready = True
            self.first_ready = self.first_ready or time.monotonic()
        else:
            if not committed(self.store, [reply.name], self.manifest.digest):
                allowed = "shared by all machines: a marker that an actor wrote cannot be seen by the driver"
                raise OutputError(bad("out", self.store.root, allowed))
            worker.tasks.pop(ref)
            worker.clock = time.monotonic()
            self.failed_starts = 0
            self.committed += reply.rows

    def _check_weights(self, weights: tuple[str, str | None]) -> None:
        """Claim the output when the first actor is ready. All actors and earlier shards must have the same weights."""
        if self.weights is None:
            claim_output(self.store, self.manifest.text, self.manifest.digest, model_file(self.manifest))
            self.weights = weights
            if self.earlier is not None:
                # Damaged shards are reported by seal.
                with suppress(ShardError):
                    record = read_records(self.store, self.earlier)[0]
                    self.weights = record.checkpoint_sha256, record.classifier_sha256
        if weights != self.weights:
            raise OutputError(
                bad("weights", _joined(weights), f"the weights of the run's other shards, {_joined(self.weights)}")
            )

    def _failed(self, worker: _Worker, ref: Any, error: RayTaskError) -> None:
        """A call raised. A user's error ends the run; any other error counts as a failed attempt or a failed start."""
        if isinstance(error.cause, RarefyError):
            raise error.cause from None
        cause = f"{type(error.cause).__name__}: {_one_line(error.cause)}"
        if ref is worker.loading:
            self._lose(worker, cause)
        else:
            task = worker.tasks.pop(ref)
            worker.clock = time.monotonic()
            self._retry(task.shard, cause)

    def _lose(self, worker: _Worker, cause: str) -> None:
        """Remove an actor that died, hung or could not start. Its shards go back to the queue."""
        ray.kill(worker.handle)
        self.workers.remove(worker)
        self.gone = add_up([self.gone, worker.snapshot])
        if not worker.ready:
            self.failed_starts += 1
            if self.failed_starts >= self.max_attempts * self.resources.actors:
                raise ShardError(f"no actor could be started in {self.failed_starts} attempts; last cause: {cause}")
        for task in worker.tasks.values():
            self._retry(task.shard, cause)

    def _retry(self, number: int, cause: str) -> None:
        name = shard_name(self.manifest.prefix, number)
        if markers := committed(self.store, [name], self.manifest.digest):
            self.committed += markers[name].rows  # the actor died after the commit
            return
        self.retries += 1
        self.last_cause = f"{name}: {cause}"
        self.attempts[number] += 1
        if self.attempts[number] < self.max_attempts:
            self.queue.append(number)
        else:
            self.given_up.append(number)

    def _expire(self) -> None:
        for worker in list(self.workers):
            limit = self.timeout_s if worker.ready else max(self.timeout_s, START_S)
            if (worker.tasks or not worker.ready) and time.monotonic() - worker.clock > limit:
                self._lose(worker, f"no reply in {limit:g} s")

    def _status(self) -> Status:
        for worker in self.workers:
            self._poll(worker)
        total = add_up([self.gone, *(worker.snapshot for worker in self.workers)])
        # A snapshot may be older than a commit, so only attempts that are still tasks count.
        in_flight = (w.snapshot.in_flight.get(task.attempt, 0.0) for w in self.workers for task in w.tasks.values())
        done = self.committed + sum(in_flight)
        elapsed = time.monotonic() - self.first_ready if self.first_ready else 0.0
        rate = (done - self.resumed) / elapsed if elapsed else 0.0
        return Status(
            done=done,
            total=self.plan.total,
            resumed=self.resumed,
            images_per_second=rate,
            eta_s=(self.plan.total - done) / rate if rate > 0 else None,
            actors_alive=sum(worker.ready for worker in self.workers),
            actors_wanted=self.resources.actors,
            retries=self.retries,
            confidence=total.confidence_sum / total.scored if total.scored else None,
            entropy=total.entropy_sum / total.scored if total.scored else None,
        )

    def _poll(self, worker: _Worker) -> None:
        """Ask for the actor's counts without waiting for them. Its death is noticed by its tasks."""
        if worker.poll is not None:
            if not ray.wait([worker.poll], timeout=0)[0]:
                return
            with suppress(RayError):
                new: Snapshot = ray.get(worker.poll)
                # An attempt that has ended is no longer in the actor's counts, but stays here until its reply is read.
                last = worker.snapshot.in_flight
                kept = {t.attempt: last[t.attempt] for t in worker.tasks.values() if t.attempt in last}
                worker.snapshot = replace(new, in_flight={**kept, **new.in_flight})
        worker.poll = worker.handle.progress.remote() if worker.ready else None


def _joined(weights: tuple[str, str | None]) -> str:
    return " ".join(sha256 or "without classifier" for sha256 in weights)


def _one_line(error: BaseException) -> str:
    """The start and end of a message, where Ray puts the cause, without the carets of tracebacks."""
    text = " ".join(word for word in str(error).split() if word.strip("^~"))
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}"
