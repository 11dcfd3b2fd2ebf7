"""The whole pipeline against a bare sampling loop that makes the same images: ``python -m benchmarks.pipeline``.

The pipeline is ``rarefy generate`` and ``seal``: Ray, an actor, scores, PNG, tar, Parquet, hashes. The bare loop is the
sampler alone. Both sample one batch at a time with one thread. Whole runs alternate, each in a new process. The ratio
is the bare loop's seconds over the pipeline's, from loaded models to the last commit, and seal's: in wall time, and in
CPU time of all processes, Ray's included. Start-up, from launch to loaded models, is printed apart.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.command import finish, fresh_process, make_parser
from rarefy.bench.measure import ratios, spread
from rarefy.diffusion.sampler import sample, to_uint8
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.execution import load_for_run
from rarefy.generate.progress import Status
from rarefy.manifest import parse_manifest
from rarefy.plan import make_plan, sample_seed, shard_name
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store
from rarefy.stages import seal_run

RAY_NICENESS = 15  # of Ray's workers; a bare loop of higher priority would win where other programs run
MANIFEST = """
name = "benchmark"
model.preset = "fashion-mnist-28"
sampler = {{ method = "ancestral", steps = {steps}, precision = "{precision}", batch = {batch} }}
guidance = [{{ term = "low-confidence", scale = 1.0, tau = 0.7 }},
            {{ term = "predicted-real-image", gamma = [[300, 0.05], [500, -0.05]] }}]
classes.total = {images}
output.shard_size = {shard_size}
"""


@dataclass(frozen=True)
class Run:
    """Seconds of wall and CPU time, seconds of start-up, and a hash of all pixels."""

    wall: float
    cpu: float
    startup: float
    sha256: str


def family_cpu() -> dict[int, float]:
    """CPU seconds by process id, of this process and all its descendants. Linux only."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rsplit(")", 1)[1].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            processes[int(path.parent.name)] = int(fields[1]), cpu_s
    pids = [os.getpid()]
    for pid in pids:  # grows while it is walked
        pids.extend(child for child, (parent, _) in processes.items() if parent == pid)
    return {pid: processes[pid][1] for pid in pids}


def run_pipeline(text: str, device: str, launched: float) -> Run:
    """Generate and seal. launched: when this process was started, on the monotonic clock."""
    moments: list[tuple[float, dict[int, float]]] = []

    def progress(status: Status) -> None:
        if (status.actors_alive and not moments) or status.done >= status.total:
            moments[1:] = [(time.monotonic(), family_cpu())]

    with tempfile.TemporaryDirectory() as out:
        manifest, store = parse_manifest(text, "benchmark"), Store(out)
        gpus = 1.0 if device == "cuda" else 0.0
        generate(manifest, GenerateOptions(out, actors=1, cpus_per_actor=1, gpus_per_actor=gpus), progress)
        (ready, cpu_ready), (last, cpu_last) = moments
        wall, cpu = -time.monotonic(), -time.process_time()
        seal_run(store)
        wall, cpu = wall + time.monotonic(), cpu + time.process_time()
        names = [shard_name(manifest.prefix, number) for number in range(make_plan(manifest).num_shards)]
        pixels = b"".join(stored.image.tobytes() for name in names for stored in read_samples(store, name))
    cpu += sum(seconds - cpu_ready.get(pid, 0.0) for pid, seconds in cpu_last.items())
    return Run(last - ready + wall, cpu, ready - launched, hashlib.sha256(pixels).hexdigest())


def run_bare(text: str, device: str, launched: float) -> Run:
    """Sample the same batches, cut within shards as an actor cuts them, and keep nothing."""
    os.nice(max(0, RAY_NICENESS - os.nice(0)))
    manifest, digest = parse_manifest(text, "benchmark"), hashlib.sha256()
    models, plan = load_for_run(manifest, torch.device(device), "auto"), make_plan(manifest)
    chain = manifest.settings.chain(manifest.preset, manifest.terms)
    start, cpu = time.monotonic(), time.process_time()
    for slots in (plan.shard(number).slots for number in range(plan.num_shards)):
        for batch in (slots[first : first + manifest.batch] for first in range(0, len(slots), manifest.batch)):
            seeds = [sample_seed(manifest.seed, slot.class_id, slot.class_index, 0) for slot in batch]
            y = torch.tensor([slot.class_id for slot in batch], device=device)
            for state in sample(models, y, seeds, chain):
                x = state.x
            digest.update(to_uint8(x).cpu().numpy().tobytes())
    return Run(time.monotonic() - start, time.process_time() - cpu, start - launched, digest.hexdigest())


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=3)
    for name, default in (("--images", 600), ("--steps", 50), ("--batch", 50), ("--shard-size", 100)):
        parser.add_argument(name, type=int, default=default, help=f"default {default}")
    parser.add_argument("--precision", choices=("exact", "fast"), default="exact")
    options = parser.parse_args(argv)
    job = MANIFEST.format(**vars(options)), options.device
    bare: list[Run] = []
    pipeline: list[Run] = []
    for _ in range(options.repeats):
        for form, runs in ((run_bare, bare), (run_pipeline, pipeline)):
            with fresh_process() as pool:
                runs.append(pool.submit(form, *job, time.monotonic()).result())
    startup_s = spread([run.startup for run in pipeline]).median
    same = len({run.sha256 for run in (*bare, *pipeline)}) == 1
    wall = ratios([run.wall for run in bare], [run.wall for run in pipeline])
    cpu = ratios([run.cpu for run in bare], [run.cpu for run in pipeline])
    print(f"pipeline at {cpu} of the bare loop's speed in CPU time, {wall} in wall time; same images: {same}")
    print(f"start-up {startup_s:.1f} s")
    ratio = {"cpu_ratio": asdict(cpu), "wall_ratio": asdict(wall)}
    finish(options, {**ratio, "same_images": same, "startup_s": startup_s})


if __name__ == "__main__":
    main()
