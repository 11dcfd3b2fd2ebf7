"""The machine: cores, memory, disks, folders and clock."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rarefy.cores import cpu_quota, usable_cores
from rarefy.doctor.check import Check, ok, problem, size, warning
from rarefy.user_cache import user_cache

LEAST_MEMORY_BYTES = 2e9  # torch, Ray and one actor of a small model
LEAST_DISK_BYTES = 2e9
LEAST_SHARED_BYTES = 256e6  # Ray's object store
BUILT = 1_764_500_000  # seconds since 1970, before this was written; an earlier clock is wrong


def check_machine() -> Iterator[Check]:
    """Everything about this machine that needs no package."""
    yield _cores()
    yield _memory()
    yield _shared_memory()
    yield from _disks()
    yield _home()
    yield _cache()
    yield _clock(time.time())


def _cores() -> Check:
    quota = cpu_quota()
    text = f"{usable_cores()} usable of {os.cpu_count() or 1}"
    if quota is not None and quota < 1:
        advice = "give the container at least one CPU, or sampling is slow and may time out"
        return warning("cores", f"{text}, the container's limit is {quota:g} of one", advice)
    return ok("cores", text if quota is None else f"{text}, the container's limit is {quota:g}")


def _memory() -> Check:
    total, free = memory_bytes()
    text = f"{size(free)} free of {size(total)}"
    if free < LEAST_MEMORY_BYTES:
        return warning("memory", text, f"a run needs about {size(LEAST_MEMORY_BYTES)}; end other programs")
    return ok("memory", text)


def memory_bytes(root: Path = Path("/")) -> tuple[float, float]:
    """Total and free memory, at most what the container is allowed. root: where proc and sys are."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = free = float(os.sysconf("SC_PHYS_PAGES") * page)
    with suppress(ValueError, OSError):  # macOS does not know it
        free = float(os.sysconf("SC_AVPHYS_PAGES") * page)
    with suppress(OSError, IndexError, ValueError):
        free = float((root / "proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    with suppress(OSError, ValueError):  # no such file, or no limit ("max")
        limit, used = (int((root / f"sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return total, free


def _shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    if not folder.is_dir():
        return ok("shared memory", "no /dev/shm on this system")
    usage = shutil.disk_usage(folder)
    text = f"{size(usage.free)} free of {size(usage.total)} in {folder}"
    if usage.free < LEAST_SHARED_BYTES:
        advice = "Ray and DataLoader workers use it: docker run --shm-size=2g, or an emptyDir with medium: Memory"
        return warning("shared memory", text, advice)
    return ok("shared memory", text)


def _disks() -> Iterator[Check]:
    places = {"temporary folder": tempfile.gettempdir, "working folder": os.getcwd}
    for name, find in places.items():
        variable = "; another place: set TMPDIR" if name == "temporary folder" else ""
        try:
            folder = Path(find())
            free = shutil.disk_usage(folder).free
        except OSError as error:  # it was deleted, or there is none that can be written
            yield problem(name, f"none that can be used ({error.strerror})", f"use another folder{variable}")
            continue
        text = f"{size(free)} free in {folder}"
        if free < LEAST_DISK_BYTES:
            yield warning(name, text, f"make room{variable}")
        elif not os.access(folder, os.W_OK):
            yield warning(name, f"{folder} cannot be written", f"use another folder{variable}")
        else:
            yield ok(name, text)


def _home() -> Check:
    try:
        home = Path.home()
    except RuntimeError:
        return warning("home", "this user has no home folder", "set HOME to a folder that can be written")
    if not (home.is_dir() and os.access(home, os.W_OK)):
        advice = "set HOME, or XDG_CACHE_HOME and HF_HOME, to a folder that can be written"
        return warning("home", f"{home} cannot be written", advice)
    return ok("home", f"{home} can be written")


def _cache() -> Check:
    folder = user_cache()
    sizes = []
    with suppress(OSError):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    if not sizes:
        return ok("cache", f"{folder} is empty")
    return ok("cache", f"{folder}: {len(sizes):,} files, {size(sum(sizes))}; rm -r {folder} clears it")


def _clock(now: float) -> Check:
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < BUILT:
        return problem("clock", text, "it is wrong, and object storage refuses requests with a wrong time: set it")
    return ok("clock", text)
