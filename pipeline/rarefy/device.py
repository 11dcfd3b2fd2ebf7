"""What a device of this machine can do, and which ways of running networks it allows."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from rarefy.errors import DeviceError, ManifestError, bad

PRECISIONS = ("exact", "fast")
COMPILES = ("auto", "off", "full")
TRITON_GPU = (7, 0)  # lowest compute capability that Triton supports


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32. On a CPU this takes matrix units for it (AMX)."""
    if device.type == "cpu":
        return "amx_bf16" in processor()
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def check_execution(device: torch.device, precision: str, compile: str) -> None:
    """Raise DeviceError or ManifestError if networks cannot run on this device in the given way."""
    if precision not in PRECISIONS:
        raise ManifestError(bad("sampler.precision", precision, f"one of {', '.join(PRECISIONS)}"))
    if compile not in COMPILES:
        raise DeviceError(bad("compile", compile, f"one of {', '.join(COMPILES)}"))
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
