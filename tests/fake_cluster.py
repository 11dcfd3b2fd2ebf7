"""A cluster whose actors are stand-ins in this process, for tests of the fleet without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.exceptions import ActorDiedError

from rarefy.errors import OutputError
from rarefy.generate.actor import Snapshot
from rarefy.generate.events import Event, What
from rarefy.generate.fit import Machine, Resources
from rarefy.generate.fleet import Fleet, Limits
from rarefy.generate.worker import Place
from rarefy.manifest import Manifest, load_manifest
from rarefy.shards.store import Store

WEIGHTS = "unet", None


@dataclass(frozen=True)
class FakeMarker:
    """The only field that the driver reads."""

    attempt: str


class FakeHandle:
    """An actor on ``node``. Its calls are answered at once, unless the cluster's functions return None."""

    def __init__(self, cluster: FakeCluster, node: str, number: int) -> None:
        self.cluster, self.node, self.number = cluster, node, number
        self.killed = False
        self.made: list[int] = []
        self.calls: list[tuple[Future[Any], Callable[[], Any]]] = []

    def locate(self) -> Future[Place]:
        return self._answer(lambda: Place(self.node, f"ray-{self.number}", "host", self.number))

    def load(self) -> Future[tuple[str, str | None]]:
        return self._answer(lambda: self.cluster.load(self))

    def generate(self, shard: int, attempt: str) -> Future[Any]:
        def make() -> Any:
            self.cluster.given.append((shard, self.number))
            marker = self.cluster.make(self, shard, attempt)
            if marker is not None:
                marker = self.cluster.markers.setdefault(shard, marker)
                self.made.append(shard)
            return marker

        return self._answer(make)

    def progress(self) -> Future[Snapshot]:
        return self._answer(lambda: self.cluster.progress(self))

    def kill(self) -> None:
        self.die(ActorDiedError())

    def die(self, error: BaseException) -> None:
        """Let all open calls fail."""
        self.killed = True
        for future, _ in self.calls:
            if not future.done():
                future.set_exception(error)

    def place(self, node: str) -> None:
        """Let an actor that waited for a machine run on this one."""
        self.node = node
        for future, call in self.calls:
            _run(future, call)

    def _answer(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((future, call))
        if self.node:
            _run(future, call)
        return future


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        answer = call()
    except Exception as error:
        future.set_exception(error)
    else:
        if answer is not None:
            future.set_result(answer)


def make_marker(handle: FakeHandle, shard: int, attempt: str) -> FakeMarker | None:
    """A shard that succeeds."""
    return FakeMarker(attempt)


@dataclass
class FakeCluster:
    """Machines with one CPU each. load, make, progress: what the actors do; None stands for no answer."""

    nodes: list[str]
    load: Callable[[FakeHandle], Any] = lambda handle: WEIGHTS
    make: Callable[[FakeHandle, int, str], FakeMarker | None] = make_marker
    progress: Callable[[FakeHandle], Snapshot | None] = lambda handle: Snapshot()
    silent: threading.Event = field(default_factory=threading.Event)
    handles: list[FakeHandle] = field(default_factory=list)
    markers: dict[int, FakeMarker] = field(default_factory=dict)
    given: list[tuple[int, int]] = field(default_factory=list)

    def machines(self) -> list[Machine]:
        while self.silent.is_set():
            time.sleep(0.05)
        for handle in self.handles:
            if not handle.node and not handle.killed and (free := self._free(frozenset())):
                handle.place(free[0])
        return [Machine(node, node, f"10.0.0.{number}", 1, 0) for number, node in enumerate(self.nodes)]

    def start(self, excluded: frozenset[str]) -> FakeHandle:
        free = self._free(excluded)
        self.handles.append(FakeHandle(self, free[0] if free else "", len(self.handles)))
        return self.handles[-1]

    def _free(self, excluded: frozenset[str]) -> list[str]:
        taken = {handle.node for handle in self.handles if not handle.killed}
        return [node for node in self.nodes if node not in taken | excluded]


class FakeCommits:
    """Storage calls on the fake cluster's markers."""

    def __init__(self, manifest: Manifest, store: Store, markers: dict[int, FakeMarker]) -> None:
        self.manifest, self.store, self.markers = manifest, store, markers
        self.earlier_weights: tuple[str, str | None] | None = None
        self.claims: list[Sequence[int]] = []
        self.refusal: OutputError | None = None  # what the driver meets when it writes to the output

    def check_writable(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(self.refusal) if self.refusal else future.set_result(None)
        return future

    def claim(self, earlier: Sequence[int]) -> Future[Any]:
        self.claims.append(earlier)
        return _done(self.earlier_weights)

    def find(self, shard: int, expected: bool) -> Future[Any]:
        return _done(self.markers.get(shard))

    def close(self) -> None:
        """Nothing to close."""


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


@dataclass
class FakeRun:
    """A run of shards of two images on a fake cluster."""

    folder: Path
    cluster: FakeCluster
    actors: int | None = None
    max_attempts: int = 3
    shards: int = 10
    events: list[Event] = field(default_factory=list)

    def fleet(self) -> Fleet:
        path = self.folder / "manifest.toml"
        path.write_text(
            'name = "tiny"\n[model]\npreset = "fashion-mnist-28"\n[classes]\n'
            f"total = {2 * self.shards}\n[output]\nshard_size = 2\n"
        )
        manifest, store = load_manifest(path), Store(str(self.folder / "out"))
        limits = Limits(1.0, None, self.max_attempts)
        resources = Resources(self.actors, 0.0, 1)
        fleet = Fleet(manifest, store, self.cluster, resources, limits, [self.events.append])
        fleet.commits.close()
        fleet.commits = FakeCommits(manifest, store, self.cluster.markers)  # type: ignore[assignment]
        return fleet

    def told(self, what: What) -> list[Event]:
        """Events of one kind."""
        return [event for event in self.events if event.what is what]
