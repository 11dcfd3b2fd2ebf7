"""The cluster's machines. A machine on which actors fail gets no new ones for a while, longer each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rarefy.generate.events import Blame
from rarefy.generate.fit import Machine, Resources

EXCLUDED_S = 2.0  # after the first failure that is the machine's; it doubles with each further one
LONGEST_S = 1800.0


@dataclass
class _Record:
    """failures, starts: failures, and among them failed starts, since a new actor last succeeded there.

    failed_s: time of the last one; until_s: when the machine may get actors again.
    """

    failures: int = 0
    starts: int = 0
    failed_s: float = 0.0
    until_s: float = 0.0


class Nodes:
    """What is known of each machine. max_starts: failed starts in a row after which a machine is hopeless."""

    def __init__(self, max_starts: int) -> None:
        self.max_starts = max_starts
        self.machines: dict[str, Machine] = {}
        self._records: dict[str, _Record] = {}

    def update(self, machines: Sequence[Machine]) -> None:
        """Take note of the machines that are alive now."""
        self.machines = {machine.node: machine for machine in machines}

    def at(self, address: str) -> str:
        """The id of the machine with this address; "" if none has it, or several."""
        found = [machine.node for machine in self.machines.values() if machine.address == address]
        return found[0] if len(found) == 1 else ""

    def failed(self, node: str, blame: Blame, start: bool, hopeless: bool, now: float) -> float:
        """Count an actor's failure; returns for how many seconds the machine gets no new actors.

        start: the actor had not loaded its models; hopeless: another try would give the same. One failure while
        sampling does not exclude a machine.
        """
        record = self._records.setdefault(node, _Record())
        record.failures += 1
        record.failed_s = now
        if start:
            record.starts = self.max_starts if hopeless else record.starts + 1
        sick = start or blame is Blame.NODE or record.failures > 1
        delay = min(EXCLUDED_S * 2 ** (min(record.failures, 20) - 1), LONGEST_S) if sick else 0.0
        record.until_s = max(record.until_s, now + delay)
        return delay

    def succeeded(self, node: str, asked_s: float, shard: bool) -> None:
        """An actor loaded its models there, or made a shard.

        Only one that was asked for after the last failure counts: the others of a machine work on when one GPU is lost.
        """
        for record in (self._records.get(node), self._records.get("")):
            if record is not None and asked_s >= record.failed_s:
                record.starts = 0
                record.failures = 0 if shard else record.failures

    def excluded(self, now: float) -> frozenset[str]:
        """Machines that get no new actors now; "" stands for failures whose machine is unknown."""
        return frozenset(node for node, record in self._records.items() if record.until_s > now)

    def fitting(self, resources: Resources) -> list[str]:
        """Machines on which at least one actor fits."""
        return [node for node, machine in self.machines.items() if resources.room(machine)]

    def room(self, resources: Resources, now: float) -> int:
        """How many actors fit on machines that are not excluded."""
        excluded = self.excluded(now)
        return sum(resources.room(machine) for node, machine in self.machines.items() if node not in excluded)

    def hopeless(self, resources: Resources) -> bool:
        """Whether actors fail to start on every machine that they fit on."""
        nodes = self.fitting(resources)
        unknown = self._starts("") >= self.max_starts * max(1, len(nodes))
        return unknown or (bool(nodes) and all(self._starts(node) >= self.max_starts for node in nodes))

    def _starts(self, node: str) -> int:
        return self._records[node].starts if node in self._records else 0
