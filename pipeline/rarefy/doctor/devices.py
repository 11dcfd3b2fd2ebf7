"""Compiler, kernels and GPUs. Importing torch takes a second or two, and shows whether it works at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from rarefy.doctor.check import Check, ok, problem, size, warning
from rarefy.extras import is_installed

COMPILER_ADVICE = "CPU steps take about twice as long: install g++, or set CXX, and Python's headers"
NVIDIA_S = 10.0


def check_devices(say: Callable[[str], None]) -> Iterator[Check]:
    """What torch can use here. say: told what takes a while."""
    seen = nvidia_gpus()
    if not is_installed("torch"):
        yield ok("torch", "not installed: no kernels or GPUs to check")
        return
    say("loading torch")
    try:
        import torch
    except (ImportError, OSError) as error:
        yield problem("torch", f"cannot be imported ({' '.join(str(error).split())[:200]})", "install it again")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield ok("torch", f"{torch.__version__} ({build}), {torch.get_num_threads()} threads")
    say("looking at rarefy's CPU kernels, which are built if they are not in the cache")
    yield from _kernels()
    yield from _gpus(torch, seen)


def _kernels() -> Iterator[Check]:
    from rarefy.device import find_compiler
    from rarefy.execution import has_cpu_kernels

    compiler = find_compiler()
    if compiler is None:
        name = os.environ.get("CXX", "g++")
        yield warning("compiler", f"no C++ compiler ({name} is not found)", COMPILER_ADVICE)
    elif not has_cpu_kernels():
        yield warning("compiler", f"{compiler} cannot build rarefy's CPU kernels", COMPILER_ADVICE)
    else:
        yield ok("compiler", f"{compiler}; rarefy's CPU kernels are built and load")


def _gpus(torch: Any, seen: list[str]) -> Iterator[Check]:
    count = torch.cuda.device_count()
    if not count and seen:
        build = "torch is built for CPUs only" if torch.version.cuda is None else "torch cannot use them"
        advice = "install torch for your driver's CUDA version (pytorch.org), or look at CUDA_VISIBLE_DEVICES"
        yield problem("GPU", f"{len(seen)} in this machine ({seen[0]}), but {build}", advice)
    elif not count:
        yield ok("GPU", "none: networks run on the CPU")
    for number in range(count):
        yield _gpu(torch, number, seen[number] if number < len(seen) else "")


def _gpu(torch: Any, number: int, seen: str) -> Check:
    from rarefy.device import TRITON_GPU, has_triton

    try:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return problem("GPU", f"cuda:{number} cannot be used ({reason})", "update the driver, or look at nvidia-smi")
    driver = f", driver {seen.rpartition(' ')[2]}" if seen else ""
    text = (
        f"cuda:{number} {properties.name}, {size(free)} free of {size(total)}, compute capability "
        f"{properties.major}.{properties.minor}{driver}"
    )
    if has_triton(torch.device("cuda", number)):
        return ok("GPU", f"{text}, Triton kernels")
    old = (properties.major, properties.minor) < TRITON_GPU
    return warning("GPU", f"{text}, no Triton kernels", "" if old else "pip install triton")


def nvidia_gpus() -> list[str]:
    """Name and driver of each GPU that NVIDIA's own tool sees; none without the tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.replace(", ", " ") for line in answer.splitlines() if line.strip()]
