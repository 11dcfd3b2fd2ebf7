"""How many actors fit on a machine or cluster, and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from rarefy.device import usable_cores, visible_gpus
from rarefy.errors import DeviceError, bad

CORES_PER_ACTOR = 8  # default on the CPU; more would wait for Python's global lock
GPU_PARTS = 10_000  # Ray divides a GPU into ten-thousandths
WORTH = 0.9  # fraction of the most CPUs that larger actors must use to be chosen


@dataclass(frozen=True)
class Machine:
    """A living machine of the cluster. node: Ray's id of it; address: its IP address; gpus: as Ray counts them."""

    node: str
    host: str
    address: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Resources:
    """What each actor gets. actors: most at once, None as many as fit; gpus: may be a fraction; cpus: batches at once.

    On a GPU an actor samples one batch at once, whatever its CPUs.
    """

    actors: int | None
    gpus: float
    cpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def room(self, machine: Machine) -> int:
        """How many actors a machine holds. A fraction of a GPU must lie on one GPU: 0.6 of two GPUs is two actors."""
        on_cpus = machine.cpus // self.cpus
        return min(on_cpus, gpu_room(machine.gpus, self.gpus)) if self.gpus else on_cpus

    def whole_gpus(self, actors: int) -> int:
        """How many GPUs that many actors take."""
        share = gpu_room(1, self.gpus)  # 0 if an actor takes several GPUs
        return -(-actors // share) if share else actors * int(self.gpus)

    def text(self) -> str:
        """What an actor needs, in words."""
        cpus = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{cpus} and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else cpus


@dataclass(frozen=True)
class Request:
    """What the user asked for. actors None: as many as fit, at most ``shards``; cpus None: all cores divided."""

    actors: int | None
    gpus: float
    cpus: int | None
    shards: int


def gpu_room(gpus: int, per_actor: float) -> int:
    """How many actors fit on the GPUs of one machine."""
    parts = round(per_actor * GPU_PARTS)
    if not parts:
        return 0
    return gpus * (GPU_PARTS // parts) if parts < GPU_PARTS else gpus // (parts // GPU_PARTS)


def check_gpus(per_actor: float) -> None:
    """Raise DeviceError for a share of a GPU that Ray cannot give."""
    parts = per_actor * GPU_PARTS
    whole = per_actor >= 1 and float(per_actor).is_integer()
    fraction = 0 < per_actor < 1 and abs(parts - round(parts)) < 1e-6
    if not (whole or fraction or per_actor == 0):
        allowed = "0, a fraction below 1 in steps of 0.0001, or a whole number"
        raise DeviceError(bad("gpus_per_actor", per_actor, allowed))


def check_gpus_here(per_actor: float) -> None:
    """Raise DeviceError for a share of a GPU that Ray cannot give, or if this machine has no GPU."""
    check_gpus(per_actor)
    if per_actor and not visible_gpus():
        allowed = "possible here: torch finds no GPU on this machine; leave it out to use the CPU"
        raise DeviceError(bad("gpus_per_actor", per_actor, allowed))


def fit_machine(request: Request) -> Resources:
    """The resources of actors on this machine alone. Raises DeviceError if they do not fit."""
    cores, gpus = usable_cores(), visible_gpus() if request.gpus else 0
    fitting = gpu_room(gpus, request.gpus) if request.gpus else cores // (request.cpus or CORES_PER_ACTOR)
    if request.gpus and (request.actors or 1) > fitting:
        allowed = f"possible for {request.actors or 1} actors: this machine has {gpus} GPUs, room for {fitting}"
        raise DeviceError(bad("gpus_per_actor", request.gpus, allowed))
    actors = request.actors or max(1, min(fitting, request.shards))
    return Resources(actors, request.gpus, request.cpus or max(1, cores // actors))


def fit_cluster(request: Request, machines: Sequence[Machine]) -> Resources:
    """The resources of actors on a cluster. How many fit is found out again and again, since machines come and go."""
    cpus = request.cpus or (1 if request.gpus else _share([machine.cpus for machine in machines], request.actors))
    return Resources(request.actors, request.gpus, cpus)


def _share(cores: Sequence[int], actors: int | None) -> int:
    """CPUs of each actor by the cores of the cluster's machines. Before there are any it is 1."""

    def room(cpus: int) -> int:
        return sum(number // cpus for number in cores)

    if actors is not None:
        return max((cpus for cpus in range(1, max(cores, default=0) + 1) if room(cpus) >= actors), default=1)
    choices = sorted({number // max(1, number // CORES_PER_ACTOR) for number in cores if number})
    most = max((cpus * room(cpus) for cpus in choices), default=0)
    return max((cpus for cpus in choices if cpus * room(cpus) >= WORTH * most), default=1)


def find_machines() -> list[Machine]:
    """The cluster's living machines. Blocks while the head does not answer."""
    return [
        Machine(
            node=node["NodeID"],
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
        if node["Alive"]
    ]
