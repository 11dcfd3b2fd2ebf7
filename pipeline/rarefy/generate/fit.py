"""How many actors fit on a machine or cluster, and what each of them gets."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray
import torch

from rarefy.errors import DeviceError, bad

CORES_PER_ACTOR = 8  # default on the CPU; more would wait for Python's global lock


@dataclass(frozen=True)
class Resources:
    """What each actor gets. actors: their number; gpus: may be a fraction; cpus: on the CPU, also batches at once."""

    actors: int
    gpus: float
    cpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True)
class Request:
    """What the user asked for. actors None: as many as fit, at most ``shards``; cpus None: all cores divided."""

    actors: int | None
    gpus: float
    cpus: int | None
    shards: int

    def count(self, fitting: int) -> int:
        """Number of actors to start if ``fitting`` would fit."""
        return self.actors or max(1, min(fitting, self.shards))


def fit_machine(request: Request) -> Resources:
    cores, gpus = len(os.sched_getaffinity(0)), request.gpus
    available = torch.cuda.device_count() if gpus else 0
    actors = request.count(int(available / gpus) if gpus else cores // (request.cpus or CORES_PER_ACTOR))
    if actors * gpus > available:
        allowed = f"at most {available}: this machine has {available} GPUs"
        raise DeviceError(bad("actors x gpus_per_actor", actors * gpus, allowed))
    return Resources(actors, gpus, request.cpus or max(1, cores // actors))


def fit_cluster(request: Request) -> Resources:
    """Further actors may wait until the cluster grows, but one must fit on a machine of the cluster as it is now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray's own
    cpus, gpus = [int(node.get("CPU", 0)) for node in nodes], [float(node.get("GPU", 0)) for node in nodes]
    if request.gpus > max(gpus):
        allowed = f"at most {max(gpus):g}, the GPUs of the largest machine of this cluster"
        raise DeviceError(bad("gpus_per_actor", request.gpus, allowed))
    on_cpus = sum(max(1, number // (request.cpus or CORES_PER_ACTOR)) for number in cpus if number)
    actors = request.count(int(sum(gpus) / request.gpus) if request.gpus else on_cpus)
    per_actor = request.cpus or (1 if request.gpus else max(1, min(sum(cpus) // actors, max(cpus))))
    if per_actor > max(cpus):
        allowed = f"at most {max(cpus)}, the CPUs of the largest machine of this cluster"
        raise DeviceError(bad("cpus_per_actor", per_actor, allowed))
    return Resources(actors, request.gpus, per_actor)
