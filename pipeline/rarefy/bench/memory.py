"""Peak memory while something runs, and how much there is."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

MARGIN = 0.8  # of what is free: allocators round up, and a run also scores and encodes
_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def reset_peak(device: torch.device) -> None:
    """Begin a new peak at what is held now; where the system has no such thing, the process's peak goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most bytes held since :func:`reset_peak`: of this process's memory, or of torch's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int:
    """Bytes that one more batch may take: on the CPU a share a core, as a run has a batch under way on each."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or found
    for limit, usage in _CGROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            most, used = (int((Path("/sys/fs/cgroup") / name).read_text()) for name in (limit, usage))
            found.append(max(most - used, 0))
    return min(found) // len(os.sched_getaffinity(0))
