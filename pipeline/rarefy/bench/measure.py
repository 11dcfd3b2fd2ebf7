"""Measuring on machines that other work shares: repeats in turn, ratios with their spread, peak memory."""

from __future__ import annotations

import os
import platform
import statistics
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
