"""Both papers on the embedded models: ``make reproduce`` (``python -m benchmarks.quality.reproduce``).

Makes every sampler's images as ordinary runs (OUT/final/METHOD-SEED-IMAGES, OUT/tau-x-gamma/..., each a data set that
``rarefy audit`` and ``rarefy compare`` take), measures the finished ones side by side on Ray and keeps one row each in
the results file. A row that is there with the same manifest, weights and judge is not made again, nor is a committed
shard: a second run goes on where the first one stopped, on another machine too. With rows of the final table it ends
with RESULTS.md and the figures, beside the results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks.quality.measure import TAIL_SHARE, measure_floor, measure_set
from benchmarks.quality.methods import METHODS, SAMPLER, ImageSet, final_sets, sweep_sets
from benchmarks.quality.report import write_report
from benchmarks.quality.traces import TraceSettings, load_pairs, traces
from rarefy.audit.features.extractors import DEFAULT_EXTRACTOR
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.bench.measure import machine
from rarefy.errors import DataError, ManifestError, RarefyError, bad
from rarefy.generate.cluster import Request, connected
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.progress import ProgressLine
from rarefy.models.checkpoint import file_sha256
from rarefy.models.folder import library
from rarefy.shards.store import Store
from rarefy.stages import seal_run

FORMAT = "rarefy-results-v1"
STAGES = ("sweep", "final")
MANY = 10_000  # shards: as many actors as fit


def wanted(arguments: argparse.Namespace) -> list[ImageSet]:
    """The sets of the stages asked for, the sweep first."""
    sets: list[ImageSet] = []
    if "sweep" in arguments.stages:
        sets += sweep_sets(arguments.sweep_images)
    if "final" in arguments.stages:
        sets += final_sets(arguments.methods, arguments.seeds, arguments.images)
    return sets


def identity(image_set: ImageSet) -> dict[str, str]:
    """All that a row depends on: the manifest, the networks' files and the judge's."""
    folder = library()[image_set.preset]
    hashes = {role: file_sha256(folder.file(role)) for role in ("unet", "classifier", "judge")}
    return {"manifest": image_set.manifest.digest} | hashes


def read_results(path: Path) -> dict[str, Any]:
    """The results so far; DataError for a file of another kind."""
    if not path.exists():
        return {"format": FORMAT, "final": [], "sweep": []}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(bad("--results", str(path), f"JSON ({error})")) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(bad("--results", str(path), f"a file of format {FORMAT}"))
    return found


def check_counts(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Raise ManifestError where rows of the stages asked for are of another number of images: they would be mixed."""
    for stage, option, images in (
        ("final", "--images", arguments.images),
        ("sweep", "--sweep-images", arguments.sweep_images),
    ):
        others = {row["count"] for row in results[stage]} - {images}
        if stage in arguments.stages and others:
            raise ManifestError(bad(option, images, f"{min(others)}, which rows of {arguments.results} have"))


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def missing(results: dict[str, Any], sets: Sequence[ImageSet]) -> list[ImageSet]:
    """The sets without a row."""
    rows = [row["identity"] for row in (*results["final"], *results["sweep"])]
    return [image_set for image_set in sets if identity(image_set) not in rows]


def row_of(image_set: ImageSet, metrics: dict[str, Any]) -> dict[str, Any]:
    """A line of the results."""
    names = {"method": image_set.name} if image_set.stage == "final" else {"stage": image_set.stage}
    return names | {
        "name": image_set.name,
        "seed": image_set.seed,
        "preset": image_set.preset,
        "guidance": list(image_set.guidance),
        "values": dict(image_set.values),
        "sampler": str(image_set.sampler),
        "digest": image_set.manifest.digest,
        **{name: round(value, 6) for name, value in metrics.items()},
        "identity": identity(image_set),
    }


def with_row(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with one more, in place of an earlier one of its stage, name and seed: of other values or weights."""

    def place(found: dict[str, Any]) -> tuple[str | None, str, int]:
        return found.get("stage"), found["name"], found["seed"]

    return [*(found for found in rows if place(found) != place(row)), row]


def make(sets: Sequence[ImageSet], out: Path, deadline: float) -> Iterator[ImageSet]:
    """Generate and seal the sets that begin before the deadline (monotonic seconds), one after another."""
    for number, image_set in enumerate(sets, 1):
        if time.monotonic() > deadline:
            print(f"out of time: {len(sets) - number + 1} sets are left for the next run", file=sys.stderr)
            return
        print(f"{number}/{len(sets)} {image_set.folder}", file=sys.stderr)
        root = str(out / image_set.folder)
        with ProgressLine() as progress:
            generate(image_set.manifest, GenerateOptions(root, cpus_per_actor=1), progress)
        seal_run(Store(root))
        yield image_set


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make what is missing, then measure it in one go; returns the results, which are on disk row by row."""
    results = read_results(arguments.results)
    check_counts(results, arguments)
    sets = missing(results, wanted(arguments))
    print(f"{len(sets)} sets to make", file=sys.stderr)
    if sets:
        results |= make_and_measure(sets, results, arguments)
    if results["final"]:
        if "traces" not in results:
            settings = TraceSettings(images=min(TraceSettings.images, arguments.images))
            results["traces"] = traces(load_pairs(torch.device("cpu"), "fast"), settings)
            write_results(arguments.results, results)
        write_report(results, arguments.results.parent)
    return results


def make_and_measure(
    sets: Sequence[ImageSet], results: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """The results with a row more for each set that there was time for; each row is on disk when it is measured."""
    deadline = time.monotonic() + arguments.minutes * 60
    with connected(Request(None, 0.0, 1, MANY), arguments.ray_address):
        made = list(make(sets, arguments.out, deadline))
        for image_set, metrics in measured(made, arguments.out):
            row = row_of(image_set, metrics)
            part = "final" if image_set.stage == "final" else "sweep"
            results[part] = with_row(results[part], row)
            results |= provenance(arguments)
            write_results(arguments.results, results)
            print(line(row), file=sys.stderr)
    if final := [image_set for image_set in made if image_set.stage == "final"]:
        floor = measure_floor(final[0].manifest)
        results["floor"] = {name: round(value, 6) for name, value in floor.items()}
        write_results(arguments.results, results)
    return results


def measured(sets: Sequence[ImageSet], out: Path) -> Iterator[tuple[ImageSet, dict[str, Any]]]:
    """Each finished set with its numbers, a core a set, in the order in which they are done."""
    task = ray.remote(num_cpus=1)(measure_set)
    pending = {task.remote(str(out / image_set.folder), image_set.manifest): image_set for image_set in sets}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        yield pending.pop(done), ray.get(done)


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, day, machine and setting of the latest rows."""
    found = machine(torch.device("cpu"))
    return {
        "command": "make reproduce",
        "date": found.pop("date"),
        "machine": found,
        "setting": {
            "images": arguments.images,
            "sampler": str(SAMPLER),
            "extractor": DEFAULT_EXTRACTOR,
            "k": DEFAULT_K,
            "reference": "10,000 test images",
            "tail": TAIL_SHARE,
        },
    }


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    shown = ("fid", "precision", "recall", "tail_recall", "on_class", "images_per_s")
    return f"{row['name']}, seed {row['seed']}: " + ", ".join(f"{name} {row[name]:.4g}" for name in shown)


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Names between commas."""
    return text.split(",")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/reproduce"), help="folder of the runs (default out/reproduce)")
    add("--results", type=Path, default=Path("docs/results.json"), help="the rows (default docs/results.json)")
    add("--stages", type=names, default=["final"], help="of sweep,final (default final)")
    add("--methods", type=names, default=list(METHODS), help=f"of {', '.join(METHODS)} (default: all)")
    add("--seeds", type=numbers, default=[0, 1, 2], help="of the final table (default 0,1,2)")
    add("--images", type=int, default=5000, help="a set of the final table (default 5000)")
    add("--sweep-images", type=int, default=1000, help="a set of the sweep (default 1000)")
    add("--minutes", type=float, default=1e6, help="begin no set later than this (default: no limit)")
    add("--ray-address", help="a Ray cluster that sees the folder (default: an embedded Ray)")
    arguments = parser.parse_args(argv)
    for option, given, known in (
        ("--methods", arguments.methods, tuple(METHODS)),
        ("--stages", arguments.stages, STAGES),
    ):
        for name in given:
            if name not in known:
                raise ManifestError(bad(option, name, f"one of {', '.join(known)}"))
    for name in ("images", "sweep_images"):
        if not 10 <= getattr(arguments, name) <= 10_000:
            raise ManifestError(
                bad(f"--{name.replace('_', '-')}", getattr(arguments, name), "from 10 to 10000, the real images")
            )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        arguments = parse(argv)
        results = run(arguments)
    except RarefyError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(results['final'])} final rows and {len(results['sweep'])} of the sweep in {arguments.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
