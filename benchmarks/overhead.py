"""The whole pipeline against a bare loop over the same sampler that makes the same images.

The pipeline is what ``rarefy generate`` and ``seal`` do: embedded Ray, actors, scoring, PNG, tar, Parquet, hashing. The
bare loop is what remains when all of that is left out: for each batch that the plan cuts, ``sample`` and ``to_uint8``,
in as many processes as the pipeline has batches under way, one thread each, which take the next batch from one queue.
Separate processes do not wait for Python's lock, so no loop is stricter; the images are compared bit for bit.

``ratio`` is the bare loop's seconds over the pipeline's while it generates: from the moment the first actor has loaded
its models to the last commit, and the whole of ``seal``. The bare clock runs from the moment all its models are loaded
to the last batch. Both begin in fresh processes, so whatever a first step costs (``fast`` compiles) is in both.
``ratio_with_startup`` divides the same bare seconds, still without any start-up, by all that the pipeline takes: Ray's
start, imports and loading in the actors, and Ray's end. Start-up is a constant, so this one grows with the number of
images. CPU seconds of the pipeline are those of the actors, the driver and Ray's servers, shown apart for the time of
generating; what Ray's servers use while they end is not seen. Wall seconds mean something on a quiet machine alone, CPU
seconds on a shared one too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.manifests import MANIFEST
from benchmarks.overhead_work import WHOSE, BareRun, Load, PipelineRun, run_bare, run_pipeline
from pipeline.bench.measure import Spread, machine, ratios, spread
from pipeline.models.precision import COMPILES


def measure(load: Load, repeats: int) -> tuple[list[BareRun], list[PipelineRun]]:
    """Both forms in turn, which goes first changing; before them a bare run of one batch, for caches on disk."""
    bare: list[BareRun] = []
    whole: list[PipelineRun] = []
    context = multiprocessing.get_context("spawn")
    for turn in range(repeats):
        for form in ("bare", "pipeline") if turn % 2 == 0 else ("pipeline", "bare"):
            if form == "bare":
                bare.append(run_bare(load))
            else:
                with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=context) as pool:
                    whole.append(pool.submit(run_pipeline, load, f"{folder}/out").result())
            print(f"{form}: run {turn + 1} of {repeats}", file=sys.stderr, flush=True)
    return bare, whole


def summarize(bare: list[BareRun], whole: list[PipelineRun]) -> dict[str, Any]:
    """Spreads of every figure over the repeats, ratios from pairs of one turn."""
    digests = {run.images_sha256 for run in bare} | {run.images_sha256 for run in whole}
    found: dict[str, Any] = {"same_images": len(digests) == 1}
    for clock in ("wall", "cpu"):
        loop = [getattr(run.seconds, clock) for run in bare]
        work = [getattr(run.work, clock) for run in whole]
        total = [getattr(run.total, clock) for run in whole]
        found[clock] = {
            "ratio": asdict(ratios(loop, work)),
            "ratio_with_startup": asdict(ratios(loop, total)),
            "bare_s": asdict(spread(loop)),
            "pipeline_s": asdict(spread(work)),
            "startup_s": asdict(spread([getattr(run.startup, clock) for run in whole])),
            "generating_s": asdict(spread([getattr(run.generating, clock) for run in whole])),
            "seal_s": asdict(spread([getattr(run.seal, clock) for run in whole])),
        }
    for name in WHOSE:
        found["cpu"][f"generating_{name}_s"] = asdict(spread([run.shares[name] for run in whole]))
    found["wall"]["ray_end_s"] = asdict(spread([run.end_s for run in whole]))
    return found


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
    run_bare(Load(MANIFEST.format(**sampler | {"images": 1, "steps": 1}), 1, 1, options.device))  # files into memory
    found = summarize(*measure(load, options.repeats))
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
