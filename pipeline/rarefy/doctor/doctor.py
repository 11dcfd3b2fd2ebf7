"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rarefy.doctor.check import Check
from rarefy.doctor.devices import check_devices
from rarefy.doctor.machine import check_machine
from rarefy.doctor.software import check_software

WIDTH = max(len(name) for name in ("temporary folder", "shared memory"))


@dataclass(frozen=True)
class DoctorOptions:
    """out: storage to try; ray: start a local Ray; ray_address: a cluster to connect to."""

    out: str | None = None
    ray: bool = False
    ray_address: str | None = None


def examine(options: DoctorOptions, say: Callable[[str], None]) -> Iterator[Check]:
    """Every check, one after the other. say: told what takes a while."""
    yield from check_software()
    yield from check_machine()
    yield from check_devices(say)
    if options.out is not None:
        from rarefy.doctor.storage import check_storage

        say("trying the storage")
        yield from check_storage(options.out)
    if options.ray or options.ray_address is not None:
        from rarefy.doctor.cluster import check_ray

        say("starting Ray" if options.ray_address is None else "connecting to Ray")
        yield check_ray(options.ray_address)


def summary(checks: Sequence[Check]) -> str:
    """One line: how many problems and warnings there are."""
    counts = {state: sum(check.state == state for check in checks) for state in ("problem", "warning")}
    if not any(counts.values()):
        return "all is well"
    return ", ".join(f"{count} {state}{'s' if count > 1 else ''}" for state, count in counts.items() if count)
