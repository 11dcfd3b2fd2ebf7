"""A process and those below it, from Linux's /proc: benchmarks that start Ray watch it from outside."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """title: command line, or what the process calls itself; cpu_s: user and system time; started: as time.time()."""

    pid: int
    parent: int
    title: str
    cpu_s: float
    started: float


def family(pid: int) -> list[Process]:
    """The living process ``pid`` and all below it, parents first. Times are whole ticks, of 10 ms as a rule."""
    everyone = [process for folder in Path("/proc").iterdir() if folder.name.isdigit() and (process := _read(folder))]
    found = [process for process in everyone if process.pid == pid]
    for process in found:  # grows while it is walked
        found.extend(child for child in everyone if child.parent == process.pid)
    return found


def _read(folder: Path) -> Process | None:
    """The process of a /proc folder; None where it ended between the two looks."""
    try:
        # The name in brackets may hold anything; fields from the third on follow it.
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        title = (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return None
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return Process(
        pid=int(folder.name),
        parent=int(fields[1]),
        title=title,
        cpu_s=(int(fields[11]) + int(fields[12])) * _TICK_S,
        started=boot + int(fields[19]) * _TICK_S,
    )
