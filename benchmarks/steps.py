"""Quality against steps, a solver: ``python benchmarks/steps.py --out out/steps --threads 2 --json``.

Makes class-balanced images of a manifest's model with its guidance terms, once a solver, number of steps and seed, and
holds each set against the preset's real images with the audit's code. A finished set is a line of OUT/rows.jsonl; a
second run makes only what is missing there. Ends with a table (OUT/steps.md), a plot (OUT/steps.svg) and the fewest
steps that are as good as the reference's; benchmarks/steps_report.py says what as good means.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import read_rows
from benchmarks.steps_report import Sweep, curves, summary, table
from benchmarks.steps_work import REFERENCE, SOLVERS, Bench, Common, Options, Setting
from rarefy.bench.measure import machine
from rarefy.errors import RarefyError
from rarefy.guidance.base import ClassifierTerm, Term
from rarefy.manifest import load_manifest

REPO = Path(__file__).resolve().parents[1]


def wanted(arguments: argparse.Namespace, common: Common, terms: Sequence[Term]) -> list[Setting]:
    """Every row asked for, once: the reference at all seeds, solvers by steps, then classifier passes left out."""
    cells = [(REFERENCE, arguments.reference_steps, 1, seed) for seed in arguments.seeds]
    cells += itertools.product(arguments.solvers, arguments.steps, [1], arguments.row_seeds)
    if any(isinstance(term, ClassifierTerm) for term in terms):
        cells += itertools.product(
            arguments.solvers, arguments.every_steps, arguments.classifier_every, arguments.row_seeds
        )
    return [Setting(*cell, common) for cell in dict.fromkeys(cells)]


def run(arguments: argparse.Namespace) -> Sweep:
    """Make the missing rows; returns all of OUT that share this run's model, guidance, images, batch and precision."""
    torch.set_num_threads(1)  # more collapse beside the workers
    a = arguments
    options = Options(a.images, a.batch, a.precision, a.device, a.threads, a.reference)
    bench = Bench(load_manifest(arguments.manifest), options)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path, common = arguments.out / "rows.jsonl", asdict(bench.common)
    done = [row["setting"] for row in read_rows(path)]
    settings = wanted(arguments, bench.common, bench.manifest.terms)
    for setting in settings:
        setting.sampler.chain(bench.manifest.preset)  # steps that do not fit are an error before the work, not amid it
    missing = [setting for setting in settings if asdict(setting) not in done]
    print(f"{len(settings) - len(missing)} rows are there, {len(missing)} to make", file=sys.stderr)
    for number, row in enumerate(bench.rows(missing), 1):
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{number}/{len(missing)} {_line(row)}", file=sys.stderr)
    rows = [row for row in read_rows(path) if row["setting"]["common"] == common]
    return Sweep(tuple(rows), bench.floor(), (REFERENCE, arguments.reference_steps), common)


def _line(row: Mapping[str, Any]) -> str:
    setting, found = row["setting"], row["metrics"]
    keys = ("solver", "steps", "classifier_every", "seed")
    return (
        ", ".join(f"{key} {setting[key]}" for key in keys)
        + ": "
        + ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    )


def number(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def numbers(text: str) -> list[int]:
    """Such numbers between commas."""
    return [number(part) for part in text.split(",")]


def seeds(text: str) -> list[int]:
    """Numbers of at least 0 between commas."""
    return [number(part) if part != "0" else 0 for part in text.split(",")]


def solvers(text: str) -> list[str]:
    """Names of solvers between commas."""
    found = text.split(",")
    for name in found:
        if name not in SOLVERS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(SOLVERS)}")
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "--out", type=Path, required=True, help="folder of rows.jsonl, steps.md and steps.svg; made where it is missing"
    )
    add("--manifest", default=str(REPO / "manifests/adm-g.toml"), help="its [model] and [[guidance]] are used")
    add("--images", type=number, default=2000, help="images a row, spread evenly over the classes (default 2000)")
    add("--solvers", type=solvers, default=list(SOLVERS)[:4], help=f"of {', '.join(SOLVERS)} (default: the first four)")
    add("--steps", type=numbers, default=[10, 15, 25, 50, 100, 250], help="default 10,15,25,50,100,250")
    add("--classifier-every", type=numbers, default=[1, 2, 4], help="steps a pass serves (default 1,2,4)")
    add("--every-steps", type=numbers, default=[25], help="where --classifier-every is tried (default 25)")
    add("--seeds", type=seeds, default=[0, 1, 2], help="of the reference, ancestral at --reference-steps (0,1,2)")
    add("--row-seeds", type=seeds, default=[0], help="of all other rows (default 0)")
    add("--reference-steps", type=number, default=250, help="default 250")
    add("--reference", help="folder of real images (default: the preset's embedded test images)")
    add("--precision", choices=("exact", "fast"), default="fast", help="default fast")
    add("--batch", type=number, default=50, help="images that one process samples at a time (default 50)")
    add("--device", default="cpu", help="torch device (default cpu)")
    add("--threads", type=number, default=1, help="worker processes, of one thread each (default 1)")
    add("--json", action="store_true", help="end with one JSON line")
    return parser.parse_args()


def main() -> int:
    try:
        arguments = parse()
        sweep = run(arguments)
    except RarefyError as error:
        print(error, file=sys.stderr)
        return 2
    text = table(sweep)
    (arguments.out / "steps.md").write_text(text + "\n")
    (arguments.out / "steps.svg").write_text(curves(sweep) + "\n")
    print(text)
    if arguments.json:
        print(json.dumps({"machine": machine(torch.device(arguments.device)), **summary(sweep)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
