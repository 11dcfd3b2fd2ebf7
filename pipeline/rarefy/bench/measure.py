"""Measuring on machines that other work shares: repeats in turn, ratios with their spread, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from rarefy.execution import has_bfloat16


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one number."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times as fast ``fast`` is as ``slow``. Entry i of both was measured in turn i."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def clock(device: torch.device, wall: bool = False) -> float:
    """Seconds: CPU time of this process with one thread, which other programs hardly change, or wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cpu_time = device.type == "cpu" and torch.get_num_threads() == 1 and not wall
    return time.process_time() if cpu_time else time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Let the memory peak start anew at the present use, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory since :func:`reset_peak`: resident memory of this process, or torch's allocations on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes(device: torch.device) -> int:
    """Free memory for one more batch: on the CPU divided by the cores, since a run has a batch on each."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, IndexError):
        free = [int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024]
    with suppress(OSError, ValueError):  # no such file, or no limit ("max")
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free.append(max(limit - used, 0))
    return min(free) // len(os.sched_getaffinity(0))


def machine(device: torch.device) -> dict[str, object]:
    """Processor, versions and date: every result names them."""
    name = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        name = Path("/proc/cpuinfo").read_text().split("model name")[1].splitlines()[0].strip(" \t:")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": has_bfloat16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
