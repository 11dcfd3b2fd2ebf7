"""Timing on machines that other work shares: CPU time of interleaved runs, medians, ratios of pairs."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from rarefy.fast.precision import has_bfloat16


@dataclass(frozen=True)
class Spread:
    """Median of some numbers with their quartiles."""

    median: float
    low: float
    high: float
    count: int


def clock(device: torch.device) -> float:
    """Seconds: of this process's CPU time on a CPU, of wall time after all queued work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def interleave(cases: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Run every case ``repeats`` times in turn, after one unmeasured run each. Returns seconds a run, by case."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            start = clock(device)
            case()
            if turn:
                seconds[name].append(clock(device) - start)
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one number."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0], len(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high, len(values))


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times as fast ``fast`` is as ``slow``, from pairs of runs made one after the other."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def ceiling_gflops(dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """GFLOP/s of a square matrix product or a 3x3 convolution in ``dtype``, whichever is faster, best of ``repeats``.

    Both, as their libraries differ: on an AMD processor MKL's float32 product runs at half of what oneDNN's
    convolution reaches. A GPU's float32 is not rounded to TF32, whatever the process allows.
    """
    side, channels = (8192, 1024) if device.type == "cuda" else (2048, 256)
    a = torch.randn(side, side, device=device).to(dtype)
    image = torch.randn(1, channels, 34, 34, device=device).to(dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(dtype).to(memory_format=torch.channels_last)
    cases = {"matmul": lambda: a @ a, "convolution": lambda: torch.nn.functional.conv2d(image, kernel)}
    operations = {"matmul": 2 * side**3, "convolution": 2 * 9 * channels**2 * 32**2}
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        runs = interleave(cases, repeats, device)
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    return max(operations[name] / min(seconds) for name, seconds in runs.items()) / 1e9


def machine(device: torch.device) -> dict[str, object]:
    """Processor, threads, whether it multiplies bfloat16, versions and date, as every result names them."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": has_bfloat16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    """The processor's name, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
