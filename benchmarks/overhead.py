"""The whole pipeline against a bare loop over the same sampler that makes the same images.

The pipeline is what ``rarefy generate`` and ``seal`` do: embedded Ray, actors, scoring, PNG, tar, Parquet, hashing. The
bare loop is what remains when all of that is left out: for each batch that the plan cuts, ``sample`` and ``to_uint8``,
in as many processes as the pipeline has batches under way, one thread each, which take the next batch from one queue.
Separate processes do not wait for Python's lock, so no loop is stricter; the images are compared bit for bit.

``ratio`` is the bare loop's seconds over the pipeline's while it generates: from the moment the first actor has loaded
its models to the last commit, and the whole of ``seal``. The bare clock runs from the moment all its models are loaded
to the last batch. Both begin in fresh processes, so whatever a first step costs (``fast`` compiles) is in both. Each
runs for some seconds while the other is stopped, whose clock then stands: a machine whose speed changes by the minute
is as slow for one as for the other.
``ratio_with_startup`` divides the same bare seconds, still without any start-up, by all that the pipeline takes: Ray's
start, imports and loading in the actors, and Ray's end. Start-up is a constant, so this one grows with the number of
images. CPU seconds of the pipeline are those of the actors, the driver and Ray's servers, shown apart for the time of
generating; what Ray's servers use while they end is not seen. Wall seconds mean something on a quiet machine alone, CPU
seconds on a shared one too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.alternate import Job, alternately
from benchmarks.manifests import MANIFEST
from benchmarks.overhead_work import BareRun, Load, PipelineRun, cpu_between, run_bare, run_pipeline
from rarefy.bench.measure import Spread, machine, ratios, spread
from rarefy.fast.precision import COMPILES


@dataclass(frozen=True)
class Pair:
    """Both forms once. seconds: by clock, wall or cpu, and what they were for, ``bare`` being all of the bare loop's;
    digests: one where both made the same images.
    """

    seconds: Mapping[str, Mapping[str, float]]
    digests: frozenset[str]


def measure(load: Load, repeats: int) -> list[Pair]:
    """Both forms by turns, as often as asked for; which goes first changes."""
    pairs = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            calls = [(run_bare, load), (run_pipeline, load, f"{folder}/out")]
            order = (0, 1) if repeat % 2 == 0 else (1, 0)
            jobs = alternately(*(calls[place] for place in order))
        pairs.append(compare(*(jobs[place] for place in order)))
        print(f"pair {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
    return pairs


def compare(bare: Job, pipeline: Job) -> Pair:
    """What the two took while they could run."""
    loop: BareRun = bare.future.result()
    run: PipelineRun = pipeline.future.result()
    stages = {
        "startup": (run.begin, run.ready),
        "generating": (run.ready, run.last),
        "ray_end": (run.last, run.ended),
        "seal": (run.ended, run.sealed),
    }
    wall = {name: pipeline.seconds(first.wall, last.wall) for name, (first, last) in stages.items()}
    shares = {name: cpu_between(*moments) for name, moments in stages.items() if name != "ray_end"}
    cpu = {name: sum(share.values()) for name, share in shares.items()}
    cpu |= {f"generating_{whose}": seconds for whose, seconds in shares["generating"].items()}
    wall["bare"], cpu["bare"] = bare.seconds(loop.start, loop.end), loop.cpu
    return Pair({"wall": wall, "cpu": cpu}, frozenset({loop.images_sha256, run.images_sha256}))


def summarize(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Spreads of every figure over the repeats, ratios from pairs."""
    found: dict[str, Any] = {"same_images": len(frozenset().union(*(pair.digests for pair in pairs))) == 1}
    for clock in ("wall", "cpu"):
        columns = {name: [pair.seconds[clock][name] for pair in pairs] for name in pairs[0].seconds[clock]}
        work = _sums(columns["generating"], columns["seal"])
        total = _sums(columns["startup"], work, columns.get("ray_end", [0.0] * len(work)))
        found[clock] = {
            "ratio": asdict(ratios(columns["bare"], work)),
            "ratio_with_startup": asdict(ratios(columns["bare"], total)),
            "pipeline_s": asdict(spread(work)),
            **{f"{name}_s": asdict(spread(column)) for name, column in columns.items()},
        }
    return found


def _sums(*columns: Sequence[float]) -> list[float]:
    return [sum(values) for values in zip(*columns, strict=True)]


def table(found: dict[str, Any]) -> str:
    """The figures as lines: median (low to high quartile)."""
    rows = [f"same images: {found['same_images']}", f"{'':24}{'wall':>26}{'CPU':>26}"]
    for name in dict.fromkeys([*found["wall"], *found["cpu"]]):
        cells = [_cell(Spread(**found[clock][name])) if name in found[clock] else "" for clock in ("wall", "cpu")]
        rows.append(f"{name:24}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(rows)


def _cell(value: Spread) -> str:
    return f"{value.median:.3f} ({value.low:.3f} to {value.high:.3f})"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600, help="images a run; whole shards for every actor are fair")
    parser.add_argument("--steps", type=int, default=50, help="steps of the chain (ancestral, the demo's guidance)")
    parser.add_argument("--batch", type=int, default=50, help="images a batch")
    parser.add_argument("--shard-size", type=int, default=100, help="images a shard")
    parser.add_argument("--precision", choices=("exact", "fast"), default="exact", help="the sampler's mode")
    parser.add_argument("--actors", type=int, default=1, help="actors of the pipeline")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="batches at once an actor (default: the cores)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: one GPU an actor")
    parser.add_argument("--compile", choices=COMPILES, default="auto", help="as rarefy run takes it")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    sampler = {name: getattr(options, name) for name in ("images", "steps", "batch", "shard_size", "precision")}
    load = Load(MANIFEST.format(**sampler), options.actors, options.threads, options.device, options.compile)
    one_step = Load(MANIFEST.format(**sampler | {"images": 1, "steps": 1}), 1, 1, options.device)
    alternately((run_bare, one_step))  # files into memory
    found = summarize(measure(load, options.repeats))
    print(table(found))
    if options.json:
        torch.set_num_threads(1)
        about = machine(torch.device(options.device))
        print(
            json.dumps(
                {
                    **sampler,
                    "actors": load.actors,
                    "threads": load.threads,
                    "compile": load.compile,
                    **found,
                    "machine": about,
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
