"""Both papers' experiments on the embedded models: ``make reproduce``.

Each sampler's images are an ordinary run below OUT, which ``rarefy audit`` and ``rarefy compare`` also accept. A set is
measured as soon as it is complete, and its row is written to the results file. Rows with the same manifest, weights and
judge are kept, and so are committed shards: a second run continues where the first one stopped, on any machine. At the
end RESULTS.md and the figures are written next to the results file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import methodcaller
from pathlib import Path

import torch

from benchmarks.quality.measure import measure_real, measure_set
from benchmarks.quality.methods import METHODS, ImageSet, final_sets
from benchmarks.quality.report import DOCS, write_report
from benchmarks.quality.results import Results, missing, read_results, row_of, with_row, write_results
from benchmarks.quality.sweep import sweep_sets
from benchmarks.quality.traces import traces
from rarefy.audit.features.extractors import DEFAULT_EXTRACTOR
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.metrics.tail import TAIL_SHARE
from rarefy.bench.measure import machine
from rarefy.errors import ManifestError, RarefyError, bad
from rarefy.generate.cluster import connected
from rarefy.generate.driver import GenerateOptions, generate
from rarefy.generate.fit import Request
from rarefy.generate.progress import ProgressLine
from rarefy.shards.store import Store
from rarefy.stages import seal_run

STAGES = ("sweep", "final")
REFERENCE_IMAGES = 10_000


def run(arguments: argparse.Namespace) -> Results:
    """Make and measure every missing set, then write the report. Returns the results."""
    results = read_results(arguments.results)
    sets = missing(results, requested(arguments))
    print(f"{len(sets)} sets to make", file=sys.stderr)
    if sets:
        check_comparable(results, sets, arguments.results)
        with connected(Request(None, 0.0, 1, shards=REFERENCE_IMAGES), arguments.ray_address):
            for number, image_set in enumerate(sets, 1):
                print(f"{number}/{len(sets)} {image_set.folder}", file=sys.stderr)
                add_row(results, image_set, arguments)
    if results["final"]:
        if "traces" not in results:
            results["traces"] = traces(min(100, arguments.images))
            write_results(arguments.results, results)
        write_report(results, arguments.results.parent)
    return results


def requested(arguments: argparse.Namespace) -> list[ImageSet]:
    """The sets of the requested stages, the sweep first."""
    rows = read_results(DOCS / "results.json")["sweep"] if "sweep" in arguments.stages else ()
    sweep = sweep_sets(rows, arguments.sweep_images)
    final = final_sets(arguments.methods, arguments.seeds, arguments.images) if "final" in arguments.stages else ()
    return [*sweep, *final]


def check_comparable(results: Results, sets: Sequence[ImageSet], path: Path) -> None:
    """Raise ManifestError if new rows would differ from those of the file in the tail or the number of images."""
    tail = results.get("setting", {}).get("tail", TAIL_SHARE)
    if tail != TAIL_SHARE:
        allowed = f"{TAIL_SHARE:g}, the tail of new rows; name a new file with --results"
        raise ManifestError(bad(f"setting.tail in {path}", tail, allowed))
    for image_set in sets:
        counts = {row["count"] for row in results[image_set.part]} - {image_set.images}
        if counts:
            allowed = f"{min(counts)}, as in the rows of {path}"
            raise ManifestError(bad(f"images of the {image_set.part} sets", image_set.images, allowed))


def add_row(results: Results, image_set: ImageSet, arguments: argparse.Namespace) -> None:
    """Generate, seal and measure a set, and write its row to the results file."""
    root, manifest = str(arguments.out / image_set.folder), image_set.manifest
    with ProgressLine() as progress:
        generate(manifest, GenerateOptions(root, cpus_per_actor=1), progress)
    seal_run(Store(root))
    if image_set.part == "final" and "floor" not in results:
        results["floor"] = {name: round(value, 6) for name, value in measure_real(manifest).items()}
    row = row_of(image_set, measure_set(root, manifest))
    results[image_set.part] = with_row(results[image_set.part], row)
    results |= provenance(arguments.images, image_set.sampler)
    write_results(arguments.results, results)
    shown = ("fid", "precision", "recall", "tail_recall", "on_class")
    print(", ".join(f"{name} {row[name]:.4g}" for name in shown), file=sys.stderr)


def provenance(images: int, sampler: str) -> Results:
    """Date, machine and setting of the latest row."""
    return {
        "command": "make reproduce",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(torch.device("cpu")),
        "setting": {"images": images, "sampler": sampler, "extractor": DEFAULT_EXTRACTOR, "k": DEFAULT_K,
                    "reference": f"{REFERENCE_IMAGES:,} test images", "tail": TAIL_SHARE},
    }  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments. Raises ManifestError for values out of range."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, names = parser.add_argument, methodcaller("split", ",")
    add("--out", type=Path, default=Path("out/reproduce"), help="folder of the runs (default out/reproduce)")
    add("--results", type=Path, default=DOCS / "results.json", help="the results file (default docs/results.json)")
    add("--stages", type=names, default=["final"], help="sweep, final or both, separated by a comma (default final)")
    add("--methods", type=names, default=list(METHODS), help="samplers, separated by commas (default all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the final table (default 0 1 2)")
    add("--images", type=int, default=5000, help="images per set of the final table (default 5000)")
    add("--sweep-images", type=int, default=1000, help="images per set of the sweep (default 1000)")
    add("--ray-address", help="a Ray cluster that sees the folder (default: an embedded Ray)")
    arguments = parser.parse_args(argv)
    for option, given, known in (("methods", arguments.methods, METHODS), ("stages", arguments.stages, STAGES)):
        if unknown := [name for name in given if name not in known]:
            raise ManifestError(bad(f"--{option}", unknown[0], f"one of {', '.join(known)}"))
    for option, images in (("images", arguments.images), ("sweep-images", arguments.sweep_images)):
        if not 10 <= images <= REFERENCE_IMAGES:
            raise ManifestError(bad(f"--{option}", images, f"from 10 to {REFERENCE_IMAGES}, the number of real images"))
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment. Returns the exit code."""
    try:
        arguments = parse(argv)
        results = run(arguments)
    except RarefyError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(results['final'])} final rows and {len(results['sweep'])} sweep rows in {arguments.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
