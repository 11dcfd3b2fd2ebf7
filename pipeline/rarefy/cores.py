"""How many CPU cores this process may use: a container often has fewer than the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on, at most the CPU time that its container is given; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of CPU time that Linux's control groups (version 1 or 2) allow this process; None for no limit.

    A group's parents limit it too. root: where proc and sys are.
    """
    quotas: list[float] = []
    for group in _groups(root):
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 2
            most, period = (group / "cpu.max").read_text().split()
            quotas.append(int(most) / int(period))  # most is "max" without a limit
        with suppress(OSError, ValueError, ZeroDivisionError):  # version 1
            most, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas.append(int(most) / int(period))  # most is -1 without a limit
    return min((quota for quota in quotas if quota > 0), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups and of their parents. In a container its own group is the top folder."""
    top = root / "sys/fs/cgroup"
    lines = ""
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text()
    for line in ["0::/", *lines.splitlines()]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        bases = [top / controllers, top / "cpu"] if controllers else [top]
        for base in bases:
            group = base / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))
