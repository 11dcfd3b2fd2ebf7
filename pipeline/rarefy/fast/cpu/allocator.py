"""How this process's C allocator keeps memory: a network's activations are the same sizes step after step."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's M_ constants, man 3 mallopt


def keep_freed_memory() -> bool:
    """Let glibc keep freed activations instead of returning them to the kernel, which zeroes each page anew.

    A tenth of a float32 step on CPUs (benchmarks/kernels.py). Returns whether the C library took it: others than
    glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # No mapping of its own for a large block: it would go back to the kernel as soon as it is freed.
    wanted = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0, _TOP_PAD: 2**28}
    return all(mallopt(key, value) == 1 for key, value in wanted.items())
