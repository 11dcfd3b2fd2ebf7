"""The Ray part: a queue of shards, plain actors that pull from it, and markers on storage as the only truth."""

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

from rarefy.errors import OutputError, RarefyError, ShardError, bad
from rarefy.generate.actor import ShardGenerator, Snapshot, add_up
from rarefy.generate.cluster import Resources
from rarefy.generate.progress import ProgressSink, Status
from rarefy.manifest import Manifest
from rarefy.plan import make_plan, shard_name, shard_names
from rarefy.shards.index import claim_output, committed
from rarefy.shards.marker import Marker
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store

TICK_S = 1.0  # between looks at the actors, each of which costs them and Ray a millisecond or more
START_S = 900.0  # least time for a machine to be found and models to load
IN_FLIGHT = 2  # one shard being sampled, one being written or waiting its turn
NAMES_SHOWN = 8
SHOWN = 200  # letters of a message's beginning and of its end


@dataclass(frozen=True)
class _Task:
    """One try of one shard."""

    shard: int
    attempt: str


@dataclass(eq=False)
class _Worker:
    """One actor as the driver sees it. tasks: oldest first, by reference; clock: when the oldest began."""

    handle: Any
    loading: Any
    clock: float
    ready: bool = False
    tasks: dict[Any, _Task] = field(default_factory=dict)
    poll: Any = None
    snapshot: Snapshot = field(default_factory=Snapshot)


class Fleet:
    """One session's queue, workers and counts. timeout_s, max_attempts: of each shard; compile: the actors' choice."""

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
        self.weights: tuple[str, str] | None = None
        self.retries = 0
        self.failed_starts = 0
        self.last_cause = ""
        self.gone = Snapshot()
        self.first_ready: float | None = None

    def finish(self, done: Mapping[str, Marker], progress: ProgressSink) -> int:
        """Make every shard of the plan that is not ``done``; returns the retries. Raises ShardError naming gaps."""
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
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            raise ShardError(
                f"{len(names)} of {self.plan.num_shards} shards are missing after {self.max_attempts} attempts "
                f"each: {', '.join(names[:NAMES_SHOWN])}{more}; last cause: {self.last_cause}"
            )
        return self.retries

    def _staff(self) -> None:
        """Start actors where some are missing, never more than there are shards left."""
        left = len(self.queue) + sum(len(worker.tasks) for worker in self.workers)
        actor: Any = ray.remote(ShardGenerator).options(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT + 1,  # and one for progress
        )
        while len(self.workers) < min(self.resources.actors, left):
            place = self.resources.device, self.resources.cpus
            handle = actor.remote(self.manifest, self.store.root, *place, self.compile)
            self.workers.append(_Worker(handle, handle.load.remote(), time.monotonic()))

    def _feed(self) -> None:
        """One shard to every ready actor, then a second one while as many wait for the other actors.

        Near the end nobody holds a shard that an idle actor could be making, and an only actor always has its next.
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
        """Take in every reply that has come, waiting up to a tick for the first."""
        owners = {ref: worker for worker in self.workers for ref in worker.tasks}
        owners |= {worker.loading: worker for worker in self.workers if not worker.ready}
        ready, _ = ray.wait(list(owners), timeout=TICK_S)
        for ref in ready:
            worker = owners[ref]
            if worker not in self.workers:
                continue  # lost while an earlier reply of this round was read
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
                place = "a place that every machine of the cluster shares: a marker written by an actor is not here"
                raise OutputError(bad("out", self.store.root, place))
            worker.tasks.pop(ref)
            worker.clock = time.monotonic()
            self.failed_starts = 0
            self.committed += reply.rows

    def _check_weights(self, weights: tuple[str, str]) -> None:
        """The first time, claim the output; all actors, and the shards of earlier sessions, must share the weights."""
        if self.weights is None:
            claim_output(self.store, self.manifest.text, self.manifest.digest)
            self.weights = weights
            if self.earlier is not None:
                # A damaged shard is seal's to find.
                with suppress(ShardError):
                    record = read_records(self.store, self.earlier)[0]
                    self.weights = record.checkpoint_sha256, record.classifier_sha256
        if weights != self.weights:
            raise OutputError(bad("weights", " ".join(weights), f"those of the run's other shards: {self.weights}"))

    def _failed(self, worker: _Worker, ref: Any, error: RayTaskError) -> None:
        """A call raised: a user's error ends the run, any other costs the shard an attempt (or the actor its start)."""
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
        """Drop an actor that died, hung or could not start; its shards go back to the queue."""
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
        if found := committed(self.store, [name], self.manifest.digest):
            self.committed += found[name].rows  # it died after its work was done
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
        seen = add_up([self.gone, *(worker.snapshot for worker in self.workers)])
        # A snapshot may be older than a commit: only what is still a task is under way.
        under_way = (w.snapshot.in_flight.get(task.attempt, 0.0) for w in self.workers for task in w.tasks.values())
        done = self.committed + sum(under_way)
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
            confidence=seen.confidence_sum / seen.scored if seen.scored else None,
            entropy=seen.entropy_sum / seen.scored if seen.scored else None,
        )

    def _poll(self, worker: _Worker) -> None:
        """Ask for the actor's counts without waiting; its death shows in its tasks."""
        if worker.poll is not None:
            if not ray.wait([worker.poll], timeout=0)[0]:
                return
            with suppress(RayError):
                found: Snapshot = ray.get(worker.poll)
                # A try that has ended left the actor's counts, but is under way here until its reply is read.
                last = worker.snapshot.in_flight
                held = {t.attempt: last[t.attempt] for t in worker.tasks.values() if t.attempt in last}
                worker.snapshot = replace(found, in_flight={**held, **found.in_flight})
        worker.poll = worker.handle.progress.remote() if worker.ready else None


def _one_line(error: BaseException) -> str:
    """A message's beginning and end, where Ray puts what went wrong, without the carets of tracebacks."""
    text = " ".join(word for word in str(error).split() if word.strip("^~"))
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}"
