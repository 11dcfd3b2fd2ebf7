"""One actor as the driver sees it, and how it is asked for on Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from rarefy.errors import TemporaryError
from rarefy.generate.actor import Snapshot
from rarefy.generate.events import Blame, Event, What
from rarefy.generate.fit import Machine, Resources, find_machines
from rarefy.generate.shard_queue import Runner
from rarefy.shards.marker import Marker

IN_FLIGHT = 2  # shards per actor: one is sampled, the other is being written or waits
NODE_LABEL = "ray.io/node-id"
Weights = tuple[str, str | None]


@dataclass(frozen=True)
class Place:
    """Where an actor runs. node, actor: Ray's ids."""

    node: str
    actor: str
    host: str
    pid: int


class Handle(Protocol):
    """An actor that was asked for. Calls return at once; their futures raise what the actor raised, or a RayError."""

    def locate(self) -> Future[Place]:
        """Where it runs, as soon as it does."""

    def load(self) -> Future[Weights]:
        """Load the models."""

    def generate(self, shard: int, attempt: str) -> Future[Marker]:
        """Make a shard."""

    def progress(self) -> Future[Snapshot]:
        """Its work so far."""

    def kill(self) -> None:
        """End it, or take back the request."""


class Cluster(Protocol):
    """Where actors come from."""

    def machines(self) -> list[Machine]:
        """The living machines. Blocks while the head does not answer."""

    def start(self, excluded: frozenset[str]) -> Handle:
        """Ask for an actor on any machine but these."""


@dataclass(frozen=True)
class Task:
    """One attempt at one shard."""

    shard: int
    attempt: str


@dataclass(eq=False)
class Worker:
    """An actor and its state. Times are the driver clock's.

    asked_s: when it was asked for, without the machines ``excluded``; place: None while it waits for a machine;
    began_s: start of loading or of the oldest task; advanced_s: last sign of progress; moving: whether there was one.
    """

    name: str
    handle: Handle
    excluded: frozenset[str]
    asked_s: float
    place: Place | None = None
    weights: Weights | None = None
    ready: bool = False
    gone: bool = False
    tasks: list[Task] = field(default_factory=list)
    began_s: float = 0.0
    advanced_s: float = 0.0
    moving: bool = False
    polled_s: float = 0.0
    polling: bool = False
    snapshot: Snapshot = field(default_factory=Snapshot)
    runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = Runner(self.name, "")

    @property
    def busy(self) -> bool:
        """Whether it should make progress."""
        return bool(self.tasks) or (self.place is not None and not self.ready)

    def located(self, place: Place, now: float) -> None:
        """It has got a machine."""
        self.place, self.runner = place, Runner(self.name, place.node)
        self.began_s = self.advanced_s = now

    def take(self, task: Task, now: float) -> None:
        """Add a task."""
        if not self.tasks:
            self.began_s = self.advanced_s = now
        self.tasks.append(task)

    def finished(self, task: Task, now: float) -> None:
        """Remove a task that has succeeded or failed; either is a sign of life."""
        self.tasks.remove(task)
        self.began_s = self.advanced_s = now

    def reported(self, new: Snapshot, now: float) -> float | None:
        """Take its counts; returns how long progress took if there was some and it was not the first."""
        interval = now - self.advanced_s if self.moving else None
        # An attempt that has ended is no longer in the actor's counts, but stays here until its reply is read.
        last, last_doing = self.snapshot.in_flight, self.snapshot.doing
        kept = {task.attempt: last[task.attempt] for task in self.tasks if task.attempt in last}
        new = replace(new, in_flight={**kept, **new.in_flight})
        if replace(new, doing=last_doing) == self.snapshot:
            self.snapshot = new
            return None
        self.snapshot, self.advanced_s, self.moving = new, now, True
        return interval

    def event(self, what: What, blame: Blame | None = None, cause: str = "", details: str = "") -> Event:
        """An event of this actor."""
        place = self.place or Place("", self.name, "", 0)
        return Event(
            what,
            actor=place.actor,
            node=place.node or None,
            host=place.host or None,
            pid=place.pid or None,
            blame=blame,
            cause=cause,
            details=details,
        )

    def images_in_flight(self) -> float:
        """Images of its running tasks, in fractions. Others are left out: a snapshot may be older than a commit."""
        return sum(self.snapshot.in_flight.get(task.attempt, 0.0) for task in self.tasks)


class RayCluster:
    """The Ray cluster that this process is connected to. actor, arguments: the class and what its constructor gets."""

    def __init__(self, actor: type, arguments: Sequence[object], resources: Resources) -> None:
        self._actor: Any = ray.remote(actor)
        self._arguments, self._resources = arguments, resources

    def machines(self) -> list[Machine]:
        return find_machines()

    def start(self, excluded: frozenset[str]) -> Handle:
        labels = {NODE_LABEL: f"!in({','.join(sorted(excluded))})"} if excluded else None
        options = self._actor.options(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            label_selector=labels,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_FLIGHT + 2,  # two more for progress() and the actor's place
        )
        try:
            return RayHandle(options.remote(*self._arguments))
        except RayError as error:
            raise TemporaryError(f"the Ray cluster takes no more actors: {' '.join(str(error).split())}") from error


class RayHandle:
    """A :class:`Handle` on Ray."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def locate(self) -> Future[Place]:
        located: Future[Place] = self._actor.__ray_call__.remote(_place).future()
        return located

    def load(self) -> Future[Weights]:
        loaded: Future[Weights] = self._actor.load.remote().future()
        return loaded

    def generate(self, shard: int, attempt: str) -> Future[Marker]:
        made: Future[Marker] = self._actor.generate.remote(shard, attempt).future()
        return made

    def progress(self) -> Future[Snapshot]:
        snapshot: Future[Snapshot] = self._actor.progress.remote().future()
        return snapshot

    def kill(self) -> None:
        with suppress(RayError):  # the cluster is gone
            ray.kill(self._actor)


def _place(actor: object) -> Place:
    """Runs in the actor."""
    context = ray.get_runtime_context()
    return Place(context.get_node_id(), context.get_actor_id() or "", socket.gethostname(), os.getpid())
