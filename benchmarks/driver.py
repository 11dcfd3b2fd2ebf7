"""What a run costs besides sampling: ``python -m benchmarks.driver``.

Null actors (benchmarks/null_actor.py) go through the real driver and a real Ray. Printed are shards per second through
two of them and how the cost of a shard grows with the shards in OUT, the seconds of a resume, the driver's memory per
shard, storage requests per shard (on an S3 stand-in), and the seconds of seal and verify. Each figure comes from new
processes, and ratios from the same call.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.command import fresh_process
from benchmarks.null_actor import MarkerGenerator, NullGenerator, use
from benchmarks.s3 import StandIn
from benchmarks.synthetic import synthetic_manifest, write_markers, write_shards
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.progress import Status
from rarefy.manifest import Manifest
from rarefy.shards.store import Store
from rarefy.stages import seal_run, verify_run

REPO = Path(__file__).parents[1]
ON_S3 = (10, 50)  # shards; the difference leaves out what every run costs once
OPERATIONS = ("PUT", "GET", "HEAD", "LIST", "DELETE")


@dataclass(frozen=True)
class Session:
    """One driver, from its first shard to its last. cpu: its CPU seconds per shard; memory: its peak in bytes."""

    shards_per_second: float
    cpu: float
    seconds: float
    memory: int


def run_driver(out: str, manifest: Manifest, actor: type, environment: Mapping[str, str]) -> Session:
    """Make the shards that are missing, with two null actors."""
    os.environ.update(environment)
    paths = [str(REPO), str(REPO / "pipeline"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    use(actor)
    moments: list[tuple[float, float, float]] = []

    def progress(status: Status) -> None:
        if status.done > status.resumed:
            moments.append((time.monotonic(), time.process_time(), status.done))

    start = time.monotonic()
    generate(manifest, GenerateOptions(out, actors=2, cpus_per_actor=1), progress)
    seconds = time.monotonic() - start
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if len(moments) < 2:
        return Session(0.0, 0.0, seconds, memory)
    wall, cpu, made = (last - first for first, last in zip(moments[0], moments[-1], strict=True))
    return Session(made / wall, cpu / made, seconds, memory)


def drive(there: int, more: int) -> tuple[Session, Session]:
    """A driver that adds ``more`` shards to an output with ``there`` shards, and one that finds nothing to do."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as out:
        manifest = synthetic_manifest(there + more)
        write_markers(Path(out), manifest, range(there))
        sessions = []
        for _ in range(2):
            with fresh_process() as pool:
                sessions.append(pool.submit(run_driver, out, manifest, MarkerGenerator, {}).result())
    return sessions[0], sessions[1]


def requests_per_shard() -> dict[str, float]:
    """Storage requests of actor and driver together, for one more shard."""
    counts = []
    for shards in ON_S3:
        with StandIn() as stand_in, fresh_process() as pool:
            stand_in.make_bucket("bucket")
            job = "s3://bucket/out", synthetic_manifest(shards), NullGenerator, stand_in.environment()
            pool.submit(run_driver, *job).result()
            counts.append(Counter(stand_in.requests))
    more = ON_S3[1] - ON_S3[0]
    return {name: (counts[1][name] - counts[0][name]) / more for name in OPERATIONS}


def close(shards: int, rows: int) -> dict[str, float]:
    """Seconds of seal and verify of whole shards of ``rows`` images."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_DIR")) as out:
        manifest = synthetic_manifest(shards, rows)
        write_shards(Path(out), manifest, range(shards), os.cpu_count() or 1)
        seconds = {}
        for name, stage in (("seal", seal_run), ("verify", verify_run)):
            start = time.monotonic()
            stage(Store(out))
            seconds[name] = time.monotonic() - start
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1_000, help="shards in the small output (default 1,000)")
    parser.add_argument("--large", type=int, default=100_000, help="shards in the large output (default 100,000)")
    parser.add_argument("--more", type=int, default=1_000, help="shards to make in each (default 1,000)")
    parser.add_argument("--sealed", type=int, default=10_000, help="shards to seal and verify (default 10,000)")
    parser.add_argument("--rows", type=int, default=1, help="images in each of these (default 1)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(argv)
    (small, _), (large, resumed) = drive(options.small, options.more), drive(options.large, options.more)
    growth, cpu_growth = small.shards_per_second / large.shards_per_second, large.cpu / small.cpu
    memory = (large.memory - small.memory) / (options.large - options.small)
    print(f"{small.shards_per_second:.0f} shards/s with {options.small:,} shards in OUT, ", end="")
    print(f"{large.shards_per_second:.0f} with {options.large:,}: a shard takes {growth:.2f} times as long, ", end="")
    print(f"and {cpu_growth:.2f} times the driver's CPU time, {1000 * large.cpu:.2f} ms")
    print(f"resume over {options.large + options.more:,} markers: {resumed.seconds:.1f} s")
    print(f"driver memory: {memory:.0f} bytes per shard")
    requests = requests_per_shard()
    print("storage requests per shard:", ", ".join(f"{name} {number:.2f}" for name, number in requests.items()))
    seconds = close(options.sealed, options.rows)
    text = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    print(f"{options.sealed:,} shards of {options.rows:,} images: {text}")
    if options.json:
        figures = {
            "growth": growth,
            "cpu_growth": cpu_growth,
            "memory_per_shard": memory,
            "requests": requests,
            "seconds": seconds,
        }
        sessions = {"small": asdict(small), "large": asdict(large), "resumed": asdict(resumed)}
        print(json.dumps({**vars(options), **figures, **sessions}))


if __name__ == "__main__":
    main()
