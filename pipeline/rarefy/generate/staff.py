"""Keeps as many actors as are wanted and fit, on machines where they work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rarefy.errors import DeviceError, RarefyError, TemporaryError
from rarefy.generate.blame import Phase, describe, find_blame, full_text, real_cause
from rarefy.generate.events import Blame, Event, EventSink, What, tell
from rarefy.generate.fit import Resources
from rarefy.generate.nodes import Nodes
from rarefy.generate.worker import Cluster, Worker

RETHINK_S = 60.0  # after which a request that names outdated machines is taken back
WAITING_S = 30.0  # after which a request that has got no machine is talked about
REMIND_S = 60.0  # between two such messages while no actor works
NO_MACHINE_S = 24 * 3600.0  # a run without any machine ends after this time
ADDRESS = re.compile(r"\bip[=:]\s*([0-9a-fA-F.:]+)")  # in Ray's messages


class Staff:
    """The workers of a session, and the machines that they may run on."""

    def __init__(self, cluster: Cluster, resources: Resources, max_starts: int, listeners: Sequence[EventSink]) -> None:
        self.cluster, self.resources, self.listeners = cluster, resources, listeners
        self.nodes = Nodes(max_starts)
        self.workers: list[Worker] = []
        self.wanted = 0
        self.loaded = False  # whether any actor has ever loaded the models
        self._started = 0
        self._staffed_s = 0.0  # when an actor last had a machine
        self._said: tuple[str, float] = "", 0.0

    @property
    def ready(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.ready]

    def recruit(self, shards_left: int, now: float) -> list[Worker]:
        """Ask for the actors that are missing, and return them. Takes back requests that name outdated machines."""
        excluded = self.nodes.excluded(now)
        for worker in list(self.workers):
            if self._outdated(worker, excluded, now):
                self.remove(worker)
        self.wanted = min(self._most(excluded, now), shards_left)
        if "" in excluded:
            return []  # an actor failed on a machine that we do not know
        new = []
        while len(self.workers) < self.wanted:
            self._started += 1
            worker = Worker(f"actor-{self._started}", self.cluster.start(excluded), excluded, now)
            self.workers.append(worker)
            new.append(worker)
        return new

    def _outdated(self, worker: Worker, excluded: frozenset[str], now: float) -> bool:
        """Whether a request names other machines than it would now, and probably has not been met."""
        if worker.place is not None or worker.excluded == excluded:
            return False
        return worker.excluded >= set(self.nodes.fitting(self.resources)) or now - worker.asked_s > RETHINK_S

    def _most(self, excluded: frozenset[str], now: float) -> int:
        """Most actors at once; at least one, whose request makes an autoscaler start a machine."""
        if self.resources.actors is not None:
            return self.resources.actors
        staying = sum(worker.place is not None and worker.place.node in excluded for worker in self.workers)
        return max(1, self.nodes.room(self.resources, now) + staying)

    def remove(self, worker: Worker) -> None:
        """End an actor, or take back the request for it."""
        worker.gone = True
        self.workers.remove(worker)
        worker.handle.kill()

    def may_load(self, worker: Worker) -> bool:
        """Whether an actor has loaded the models, or another one is about to: a sick machine fails sooner than that."""
        return self.loaded or any(other.place and not other.ready for other in self.workers if other is not worker)

    def works(self, worker: Worker, now: float) -> None:
        """An actor has loaded the models."""
        self.loaded = worker.ready = True
        worker.began_s = worker.advanced_s = now
        self.nodes.succeeded(worker.runner.node, worker.asked_s, shard=False)
        tell(self.listeners, worker.event(What.ACTOR_READY))

    def failed(self, worker: Worker, error: BaseException, blame: Blame, now: float) -> None:
        """An actor is of no use any more: remove it, and remember its machine's failure."""
        start, cause = not worker.ready, real_cause(error)
        node = worker.runner.node or self._node_of(error)
        self.remove(worker)
        hopeless = blame is Blame.NODE and not self.loaded
        delay = self.nodes.failed(node, blame, start, hopeless, now)
        tell(self.listeners, worker.event(What.ACTOR_LOST, blame, describe(cause), full_text(error)))
        if delay:
            text = f"for {delay:.0f} s, since an actor failed there"
            tell(self.listeners, replace(worker.event(What.NODE_EXCLUDED, blame, text), node=node or None))
        works = any(other.place is not None for other in self.workers)
        if start and not works and self.nodes.hopeless(self.resources):
            raise self._no_start(cause)

    def _no_start(self, cause: BaseException) -> RarefyError:
        """No actor starts anywhere."""
        if isinstance(cause, RarefyError) and not self.loaded:
            return cause
        text = f"actors: {self._started} were started, and none works now; the last failed with {describe(cause)}"
        return TemporaryError(text) if self.loaded else DeviceError(text)

    def _node_of(self, error: BaseException) -> str:
        """The machine of an actor that died in its constructor: Ray's message has its address."""
        found = ADDRESS.search(str(error))
        return self.nodes.at(found[1]) if found else ""

    def wait(self, now: float) -> None:
        """Say what requests wait for. Raises TemporaryError if there has been no machine for a very long time."""
        if any(worker.place for worker in self.workers) or not self.wanted:
            self._staffed_s = now
        waiting = [worker for worker in self.workers if worker.place is None and now - worker.asked_s > WAITING_S]
        if now - self._staffed_s > NO_MACHINE_S:
            raise TemporaryError(f"no actor could run for {NO_MACHINE_S / 3600:.0f} hours: {self._lack(now)}")
        text = f"an actor that needs {self.resources.text()} has not started: {self._lack(now)}" if waiting else ""
        last, said_s = self._said
        news = text != last and (not last or now - said_s > WAITING_S)
        if news or (text and not self.ready and now - said_s > REMIND_S):
            self._said = text, now
            if text:
                tell(self.listeners, Event(What.WAITING, cause=text))

    def _lack(self, now: float) -> str:
        fitting = set(self.nodes.fitting(self.resources))
        if not fitting:
            return f"none of the cluster's {len(self.nodes.machines)} machines has so much"
        if fitting <= self.nodes.excluded(now):
            return "the machines that have so much get no actors for a while, since actors failed there"
        return "its process is slow to start, or the machines that have so much are in use"


def blame_of(worker: Worker, error: BaseException, proven: bool) -> Blame:
    """Whose fault it is that a worker's call failed."""
    return find_blame(real_cause(error), Phase.SHARD if worker.ready else Phase.LOADING, proven)
