"""Ray: a local one that is started and stopped again, or a cluster that is there."""

from __future__ import annotations

import time

from rarefy.doctor.check import Check, ok, problem
from rarefy.errors import RarefyError
from rarefy.extras import is_installed


def check_ray(address: str | None) -> Check:
    """Connect to a cluster, or for None start a Ray on this machine; takes several seconds."""
    if not is_installed("ray"):
        return problem("Ray", "not installed", "pip install 'rarefy[run]'")
    from rarefy.generate.cluster import connected
    from rarefy.generate.fit import Request, find_machines

    start = time.monotonic()
    try:
        with connected(Request(actors=1, gpus=0.0, cpus=1, shards=1), address):
            machines = find_machines()
    except RarefyError as error:
        advice = "look at ray status on the head" if address else "look at shared memory and the temporary folder"
        return problem("Ray", str(error), advice)
    cpus, gpus = sum(machine.cpus for machine in machines), sum(machine.gpus for machine in machines)
    what = "a local Ray starts" if address is None else f"{address}: {len(machines)} machines, {cpus} CPUs, {gpus} GPUs"
    return ok("Ray", f"{what} ({time.monotonic() - start:.1f} s)")
