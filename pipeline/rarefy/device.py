"""What a device of this machine can do, and which ways of running networks it allows."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import resource
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from rarefy.cores import usable_cores as usable_cores
from rarefy.errors import DeviceError, ManifestError, bad, one_of

PRECISIONS = ("exact", "fast")
COMPILES = ("auto", "off", "full")
TRITON_GPU = (7, 0)  # lowest compute capability that Triton supports


def find_device(name: str) -> torch.device:
    """The CPU or a GPU of this machine by name. Raises DeviceError."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(bad("device", name, "cpu, cuda or cuda:N"))
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(bad("device", name, f"available here: torch finds {count or 'no'} GPU on this machine"))
    return device


def visible_gpus() -> int:
    """GPUs that this process and its actors may use.

    CUDA_VISIBLE_DEVICES may name parts of GPUs (MIG-...). A process sees only the first of them, but each actor gets
    its own from Ray, which passes names on as they are.
    """
    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    parts = list(itertools.takewhile(lambda name: name.startswith("MIG-"), names))
    return len(set(parts)) if count and parts else count


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32. On a CPU this takes matrix units for it (AMX)."""
    if device.type == "cpu":
        return "amx_bf16" in processor()
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def check_execution(device: torch.device, precision: str, compile: str) -> None:
    """Raise DeviceError or ManifestError if networks cannot run on this device in the given way."""
    if precision not in PRECISIONS:
        raise ManifestError(bad("sampler.precision", precision, one_of(precision, PRECISIONS)))
    if compile not in COMPILES:
        raise DeviceError(bad("compile", compile, one_of(compile, COMPILES)))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(bad("device", device.type, "available: torch finds no GPU on this machine"))
    if compile == "full" and not has_compiler(device):
        needed = "g++ (or $CXX) and Python's headers" + (", and Triton for a GPU" if device.type == "cuda" else "")
        raise DeviceError(bad("compile", compile, f"possible here: torch.compile needs {needed}; use auto or off"))


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can build for the device."""
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    return find_compiler() is not None and headers and (device.type == "cpu" or has_triton(device))


def has_triton(device: torch.device) -> bool:
    """Whether Triton is installed and supports this GPU."""
    installed = importlib.util.find_spec("triton") is not None
    return installed and torch.cuda.get_device_capability(device) >= TRITON_GPU


def find_compiler() -> str | None:
    """Path of the machine's C++ compiler: $CXX, or the platform's default. torch.compile uses the same."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


@functools.cache
def processor() -> str:
    """The processor's instruction sets as Linux lists them; on other systems its name."""
    with contextlib.suppress(OSError, StopIteration), Path("/proc/cpuinfo").open() as lines:
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{sys.platform} {os.uname().machine}"


def reset_peak(device: torch.device) -> None:
    """Let the memory peak start anew at the present use, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory since :func:`reset_peak`: resident memory of this process, or torch's allocations on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes(device: torch.device) -> int:
    """Free memory for one more batch: on the CPU divided by the cores, since a run has a batch on each."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, IndexError):
        free = [int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024]
    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit ("max")
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free.append(max(limit - used, 0))
    return min(free) // usable_cores()
