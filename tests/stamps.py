"""Work that says when it ran, in a module of its own: spawned processes cannot import test files."""

from __future__ import annotations

import subprocess
import sys
import time

WORK_S = 0.5
STAMPS = f"""
import time
while time.process_time() < {WORK_S}:
    print(time.monotonic())
"""


def stamp(name: str) -> tuple[str, list[float]]:
    """The name, and when this process's child, and then it, were running."""
    child = subprocess.run([sys.executable, "-c", STAMPS], check=True, capture_output=True, text=True)
    stamps = [float(line) for line in child.stdout.split()]
    end = time.process_time() + WORK_S
    while time.process_time() < end:
        stamps.append(time.monotonic())
    return name, stamps


def fail(message: str) -> None:
    raise ValueError(message)
