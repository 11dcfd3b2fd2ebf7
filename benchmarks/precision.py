"""What ``fast`` (bfloat16) changes against ``exact`` (float32), on the embedded model with its real weights.

Three kinds of rows, for every set of guidance terms asked for:

    errors   relative error of eps and of the guidance G at noised test images, by time step
    pixels   finished images of one chain from the same seeds: differences in 8-bit levels
    metrics  FID, recall and the others of the audit, mean confidence (p of the wanted class) and entropy (nats):
             fast less exact on the same seeds, beside the standard deviation of exact over the seeds

Confidence and entropy are the exact classifier's, so that they tell of the images; own_ is what a run in that mode
writes down. Where no difference in mode is there to find (``--against exact``) every error is zero.

Rows go to OUT/rows.jsonl as they are made, in ``--threads`` processes of one thread; the same command again makes
only those that are missing. A metrics row of 1,000 images over 50 steps takes some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.precision_work import PRESET, SETS, Job, run_job
from benchmarks.rows import read_rows
from rarefy.bench.measure import machine
from rarefy.fast.precision import has_bfloat16
from rarefy.models.checkpoint import file_sha256
from rarefy.models.folder import find_model

ALL_REFERENCE = 10_000
HEADLINES = ("fid", "recall", "confidence", "entropy")
FILES = {"checkpoint": "unet", "classifier": "classifier"}
Row = dict[str, Any]


def plan_jobs(options: argparse.Namespace) -> list[Job]:
    """Every row that the options ask for, the longest first."""
    files = [file_sha256(find_model(PRESET).file(network)) for network in ("unet", "classifier")]
    shared = (options.eager, options.device, hashlib.sha256("".join(files).encode()).hexdigest()[:16])
    batch, steps, against = options.batch, options.steps, options.against
    jobs = [
        Job("metrics", terms, against, seed, options.images, batch, steps, (), options.reference, *shared)
        for terms in options.metric_terms
        for seed in range(options.seeds)
    ]
    for terms in options.terms:
        jobs.append(Job("pixels", terms, against, 0, options.pixel_images, batch, steps, (), 0, *shared))
        jobs.append(Job("errors", terms, against, 0, batch, batch, 0, tuple(options.times), 0, *shared))
    return jobs


def as_key(job: Job) -> Row:
    """The job as it comes back from JSON."""
    key: Row = json.loads(json.dumps(asdict(job)))
    return key


def make_rows(jobs: Sequence[Job], threads: int) -> Iterator[Row]:
    """Each job's row, as it is finished."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(threads, mp_context=context) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(futures):
            yield {"job": as_key(futures[future]), "found": future.result()}


def collect(jobs: Sequence[Job], path: Path, threads: int) -> list[Row]:
    """All rows of the jobs, making and keeping those that the file does not hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [as_key(job) for job in jobs]
    rows = [row for row in read_rows(path) if row["job"] in keys]
    missing = [job for job, key in zip(jobs, keys, strict=True) if key not in [row["job"] for row in rows]]
    print(f"{len(rows)} of {len(jobs)} rows are in {path}", file=sys.stderr, flush=True)
    with path.open("a") as file:
        for row in make_rows(missing, threads):
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            print(f"row {len(rows)}: {row['job']['kind']} {row['job']['terms']}", file=sys.stderr, flush=True)
    return sorted(rows, key=lambda row: keys.index(row["job"]))


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows by kind and terms; of the metrics the differences and their yardstick."""
    found: dict[str, Any] = {"errors": {}, "pixels": {}, "metrics": {}}
    for row in rows:
        kind, terms = row["job"]["kind"], row["job"]["terms"]
        if kind == "metrics":
            found[kind].setdefault(terms, []).append(row["found"])
        else:
            found[kind][terms] = row["found"] if kind == "errors" else row["found"]["pixels"]
    found["metrics"] = {terms: differences(seeds) for terms, seeds in found["metrics"].items()}
    return found


def differences(seeds: Sequence[Row]) -> dict[str, Any]:
    """By metric over the seeds: exact's mean and standard deviation, the mean and each difference to it.

    within: the mean difference is no larger than the deviation; exact_std and within are null for one seed.
    """
    found: dict[str, Any] = {}
    for name in seeds[0]["exact"]:
        exact = [row["exact"][name] for row in seeds]
        change = [row["against"][name] - row["exact"][name] for row in seeds]
        std = statistics.stdev(exact) if len(exact) > 1 else None
        mean = statistics.fmean(change)
        found[name] = {
            "exact": statistics.fmean(exact),
            "exact_std": std,
            "difference": mean,
            "differences": change,
            "within": None if std is None else abs(mean) <= std,
        }
    return found


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The worst over all terms: relative errors from least to most, pixels, and metrics beside their spread."""
    errors = {
        name: [e["batch"] for of_terms in found["errors"].values() for e in of_terms[name].values() if e["batch"]]
        for name in ("eps", "gradient")  # without the time steps at which a term does nothing
    }
    metrics = {}
    for name in HEADLINES:
        entries = [of_terms[name] for of_terms in found["metrics"].values()]
        worst = max(entries, key=lambda entry: abs(entry["difference"]))
        metrics[name] = {"difference": worst["difference"], "std": worst["exact_std"]}
    pixels = max(of_terms["above_1"] for of_terms in found["pixels"].values())
    ranges = {name: [min(values), max(values)] for name, values in errors.items()}
    return {**ranges, "pixels_above_1": pixels, "metrics": metrics}


def table(found: dict[str, Any]) -> str:
    """All figures as lines."""
    rows = []
    for terms, errors in found["errors"].items():
        for name, times in errors.items():
            cells = "  ".join(f"t={t}: {e['batch']:.2e} (worst {e['worst']:.1e})" for t, e in times.items())
            rows.append(f"{terms:22}{name:10}{cells}" if times else f"{terms:22}{name:10}none")
    for terms, pixels in found["pixels"].items():
        rows.append(f"{terms:22}pixels    " + "  ".join(f"{name} {value:.4g}" for name, value in pixels.items()))
    for terms, metrics in found["metrics"].items():
        for name, m in metrics.items():
            std = "unknown" if m["exact_std"] is None else f"{m['exact_std']:.2g}"
            rows.append(f"{terms:22}{name:15}{m['exact']:10.4g} {m['difference']:+10.3g}   std over seeds {std}")
    return "\n".join(rows)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="out/bench/precision", help="folder of rows.jsonl")
    parser.add_argument("--terms", nargs="*", choices=SETS, default=list(SETS), help="sets for errors and pixels")
    parser.add_argument("--metric-terms", nargs="*", choices=SETS, default=["demo"], help="sets for metrics")
    parser.add_argument("--images", type=int, default=1000, help="images a set of metrics")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of metrics")
    parser.add_argument("--steps", type=int, default=50, help="ancestral steps of every chain")
    parser.add_argument("--pixel-images", type=int, default=50, help="images of pixels")
    parser.add_argument("--batch", type=int, default=50, help="images a batch, and noisy images a time step of errors")
    parser.add_argument(
        "--times", nargs="+", type=int, default=[2, 20, 100, 300, 600, 950], help="time steps of errors"
    )
    parser.add_argument("--reference", type=int, default=ALL_REFERENCE, help="test images that metrics compare with")
    parser.add_argument("--against", choices=("fast", "exact"), default="fast", help="the mode held against exact")
    parser.add_argument("--eager", action="store_true", help="that mode by torch alone, without our kernels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--save", type=Path, help="JSON of the worst, as the audit's page tells it of embedded models")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.save and not (options.terms and options.metric_terms):
        parser.error("--save: needs at least one set each of --terms and --metric-terms")
    if options.save and not has_bfloat16(torch.device(options.device)):
        parser.error("--save: needs a device that multiplies bfloat16, where fast is that")
    found = summarize(collect(plan_jobs(options), Path(options.out) / "rows.jsonl", options.threads))
    print(table(found))
    names = ("against", "images", "seeds", "steps", "pixel_images", "batch", "reference", "eager")
    about = {name: getattr(options, name) for name in names} | {"machine": machine(torch.device(options.device))}
    if options.save:
        hashes = {f"{name}_sha256": file_sha256(find_model(PRESET).file(file)) for name, file in FILES.items()}
        options.save.write_text(json.dumps({**hashes, **about, **headline(found)}, indent=1) + "\n")
    if options.json:
        print(json.dumps({**about, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
