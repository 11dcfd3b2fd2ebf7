"""The two forms that benchmarks/overhead.py compares: one run of the pipeline, one of the bare loop."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from rarefy.bench.processes import Process, family
from rarefy.diffusion.sampler import sample, to_uint8
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.execution import load_for_run
from rarefy.generate.progress import Status
from rarefy.manifest import Manifest, parse_manifest
from rarefy.plan import Slot, class_rank, make_plan, sample_seed, shard_name
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store
from rarefy.stages import seal_run

PATIENCE_S = 600.0
WHOSE = ("actors", "driver", "ray")
RAY_NICENESS = 15  # what Ray gives its workers: a loop of higher priority would win where other work runs beside


@dataclass(frozen=True)
class Load:
    """text: the manifest; threads: batches at once in an actor; device: cpu or cuda (a GPU an actor); compile: what."""

    text: str
    actors: int
    threads: int
    device: str = "cpu"
    compile: str = "auto"

    @property
    def manifest(self) -> Manifest:
        return parse_manifest(self.text, "benchmark.toml")

    @property
    def concurrent(self) -> int:
        """Batches under way at once."""
        return self.actors * self.threads if self.device == "cpu" else self.actors


@dataclass(frozen=True)
class BareShare:
    """One process's part: monotonic times, CPU seconds, pixels by number of the batch."""

    start: float
    end: float
    cpu: float
    pixels: dict[int, bytes]


@dataclass(frozen=True)
class BareRun:
    """start, end: monotonic; cpu: seconds."""

    start: float
    end: float
    cpu: float
    images_sha256: str


@dataclass(frozen=True)
class Moment:
    """wall: monotonic; processes: the pipeline's that live, the driver first, by pid."""

    wall: float
    processes: Mapping[int, Process]


@dataclass(frozen=True)
class PipelineRun:
    """Moments: its begin, the first actor's models loaded, the last commit, Ray's end, sealed."""

    begin: Moment
    ready: Moment
    last: Moment
    ended: Moment
    sealed: Moment
    images_sha256: str


class Watch:
    """A progress sink that notes wall time and the whole family's CPU time when models are there and at the end."""

    def __init__(self) -> None:
        self.begin = self.last = now()
        self.ready: Moment | None = None

    def __call__(self, status: Status) -> None:
        if self.ready is None and status.actors_alive:
            self.ready = now()
        if status.done >= status.total:
            self.last = now()


def now() -> Moment:
    """This process's family at this moment."""
    return Moment(time.monotonic(), {process.pid: process for process in family(os.getpid())})


def cpu_between(first: Moment, last: Moment) -> dict[str, float]:
    """CPU seconds by WHOSE, of the processes that live at the last moment, by what each is by then.

    An idle worker becomes an actor, so that sums by name at each moment would move its seconds from one to the other.
    """
    driver, *_ = last.processes
    cpu = dict.fromkeys(WHOSE, 0.0)
    for pid, process in last.processes.items():
        before = first.processes.get(pid)
        cpu[whose(process, driver)] += process.cpu_s - (before.cpu_s if before else 0.0)
    return cpu


def whose(process: Process, driver: int) -> str:
    """One of WHOSE; ray: its servers, agents and idle workers. driver: its pid."""
    if process.pid == driver:
        return "driver"
    return "actors" if process.title.startswith("ray::ShardGenerator") else "ray"


def run_pipeline(load: Load, out: str) -> PipelineRun:
    """Generate and seal into ``out``; for a process of its own."""
    gpus = 1.0 if load.device == "cuda" else 0.0
    threads = load.threads if load.device == "cpu" else None
    options = GenerateOptions(
        out=out, actors=load.actors, gpus_per_actor=gpus, cpus_per_actor=threads, compile=load.compile
    )
    watch = Watch()
    generate(load.manifest, options, watch)
    ended = now()
    store = Store(out)
    seal_run(store)
    sealed = now()
    assert watch.ready is not None
    return PipelineRun(watch.begin, watch.ready, watch.last, ended, sealed, _stored_sha256(store, load.manifest))


def run_bare(load: Load) -> BareRun:
    """Make the manifest's images and keep none, in ``load.concurrent`` fresh processes; from a process of its own."""
    count = load.concurrent
    batches = len(plan_batches(load.manifest))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(count, mp_context=context) as pool:
        tasks: queue.Queue[int] = manager.Queue()
        for number in range(batches):
            tasks.put(number)
        # Each process holds its one call until all have loaded.
        loaded = manager.Barrier(count, timeout=PATIENCE_S)
        shares = [future.result() for future in [pool.submit(bare_share, load, tasks, loaded) for _ in range(count)]]
    pixels = {number: data for share in shares for number, data in share.pixels.items()}
    digest = hashlib.sha256(b"".join(pixels[number] for number in sorted(pixels))).hexdigest()
    start, end = min(share.start for share in shares), max(share.end for share in shares)
    return BareRun(start, end, sum(share.cpu for share in shares), digest)


def bare_share(load: Load, tasks: queue.Queue[int], loaded: Any) -> BareShare:
    """Take batches until none is left."""
    os.nice(max(0, RAY_NICENESS - os.nice(0)))
    manifest, device = load.manifest, torch.device(load.device)
    models = load_for_run(load.manifest, torch.device(load.device), load.compile)
    chain = manifest.settings.chain(manifest.preset, manifest.terms)
    batches, pixels = plan_batches(manifest), {}
    loaded.wait()
    start, cpu = time.monotonic(), time.process_time()
    while (number := _next(tasks)) is not None:
        slots = batches[number]
        seeds = [sample_seed(manifest.seed, slot.class_id, slot.class_index, 0) for slot in slots]
        y = torch.tensor([slot.class_id for slot in slots], device=device)
        ranks = torch.tensor([class_rank(slot.class_index) for slot in slots], device=device)
        for state in sample(models, y, seeds, chain, ranks):
            x = state.x
        pixels[number] = to_uint8(x).cpu().numpy().tobytes()
    return BareShare(start, time.monotonic(), time.process_time() - cpu, pixels)


def plan_batches(manifest: Manifest) -> list[Sequence[Slot]]:
    """Every batch of the run, as an actor cuts it: within a shard, in slot order."""
    plan, size = make_plan(manifest), manifest.batch
    shards = [plan.shard(number).slots for number in range(plan.num_shards)]
    return [slots[start : start + size] for slots in shards for start in range(0, len(slots), size)]


def _next(tasks: queue.Queue[int]) -> int | None:
    try:
        return tasks.get_nowait()
    except queue.Empty:
        return None


def _stored_sha256(store: Store, manifest: Manifest) -> str:
    digest = hashlib.sha256()
    for number in range(make_plan(manifest).num_shards):
        for stored in read_samples(store, shard_name(manifest.prefix, number)):
            digest.update(stored.image.tobytes())
    return digest.hexdigest()
