"""Growth with actors: processes that sample side by side, each with models and a torch thread of its own."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from rarefy.bench.step import StepClock, endless_steps, full_steps
from rarefy.bench.workload import load_workload
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import Execution, set_up
from rarefy.manifest import Manifest

PATIENCE_S = 1800.0  # for all to load and compile


@dataclass(frozen=True)
class Share:
    """One process's part: ``steps`` full steps of ``batch`` images with ``threads`` threads of torch."""

    manifest: Manifest
    execution: Execution
    device: str
    threads: int
    batch: int
    steps: int


def image_steps_per_second(share: Share, actors: int) -> float:
    """Images times steps a second of wall time, from when all have loaded and warmed up to when the last is done."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(actors, mp_context=context) as pool:
        # Each process holds its one call until all have come this far.
        ready = manager.Barrier(actors, timeout=PATIENCE_S)
        spans = [future.result() for future in [pool.submit(_run, share, ready) for _ in range(actors)]]
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    return actors * share.batch * share.steps / seconds


def _run(share: Share, ready: Any) -> tuple[float, float]:
    """Take the steps; returns when they began and ended, on the machine's monotonic clock."""
    device = torch.device(share.device)
    torch.set_num_threads(share.threads)
    if device.type == "cpu":
        keep_freed_memory()
    models, _ = load_workload(share.manifest, device)
    set_up((models.unet, models.classifier), share.execution, share.batch)
    chain = full_steps(share.manifest.settings.chain(share.manifest.preset, share.manifest.terms))
    steps = endless_steps(models, chain, share.batch, StepClock(device))
    next(steps)
    ready.wait()
    start = time.monotonic()
    for _ in range(share.steps):
        x = next(steps).x
    x.sum().item()  # waits for a GPU
    return start, time.monotonic()
