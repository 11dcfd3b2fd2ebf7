"""How fast and how large the audit's k-NN pass is, beside torch-fidelity's blockwise precision/recall and prdc.

    python benchmarks/audit.py --n 10000 --dim 1280 --threads 1 --json

All run on the same features in one process, on the same threads, in turn; seconds are of CPU time, so that other work
on the machine counts less. The last line is a JSON object:

    seconds                {ours, torch_fidelity, prdc}: medians
    ratio_torch_fidelity   torch-fidelity's seconds over ours, median of pairs; ratio_prdc likewise
    peak_bytes             most memory that our pass held beyond its inputs, measured in a process of its own
    feature_bytes          of the two feature matrices
    metrics                {ours, torch_fidelity, prdc}: precision, recall, density, coverage: they must agree
    growth                 unless --no-growth: [{n, seconds, peak_bytes}] from 5,000 to 50,000, ours alone
    stream                 with --stream N: N generated rows against --n real ones, part by part, ours alone

prdc holds whole N x N matrices of float64: beyond 20,000 rows it needs --skip-prdc or a large machine. Its distances
take scikit-learn's threads (8 jobs, by its own code); the BLAS below them is held to --threads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prdc import compute_prdc
from threadpoolctl import threadpool_limits

from rarefy.audit.metrics.distances import precision_recall
from rarefy.audit.metrics.neighbors import Crossing, build_manifold, find_neighbors
from rarefy.bench.measure import interleave, machine, ratios
from rarefy.bench.memory import peak_bytes, reset_peak

Features = NDArray[np.float32]
GROWTH = (5_000, 10_000, 20_000, 50_000)
STREAM_PART = 10_000
CPU = torch.device("cpu")
LATENT = 24  # what real features look like: few directions, bent into many


def main() -> None:
    """Parse, measure, print."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        result: dict[str, Any] = {name: getattr(arguments, name) for name in ("n", "dim", "k")}
        result["machine"] = machine(CPU)
        if arguments.repeats:
            result |= _measure(arguments)
        if arguments.growth:
            result["growth"] = [_own_process(_grow, (n, arguments)) for n in GROWTH]
        if arguments.stream:
            result["stream"] = _own_process(_stream, (arguments.stream, arguments))
    if not arguments.json:
        _print_table(result)
    print(json.dumps(result))


def make_features(rows: int, dim: int, seed: int) -> Features:
    """(rows, dim) float32: a bent manifold of 24 dimensions with a little noise, neither sparse nor hard on purpose."""
    generator, shared = np.random.default_rng(seed), np.random.default_rng(0)
    weights = shared.standard_normal((LATENT, dim), dtype=np.float32)
    found: Features = np.tanh(generator.standard_normal((rows, LATENT), dtype=np.float32) @ weights / LATENT**0.5)
    found += np.float32(0.05) * generator.standard_normal((rows, dim), dtype=np.float32)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="rows of each matrix")
    parser.add_argument("--dim", type=int, default=1280, help="features a row")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="0 leaves the comparison with the others out")
    parser.add_argument("--skip-prdc", action="store_true", help="where its matrices do not fit")
    parser.add_argument(
        "--growth", action=argparse.BooleanOptionalAction, default=True, help="time ours from 5,000 to 50,000 rows"
    )
    parser.add_argument("--stream", type=int, help="also stream this many generated rows against --n real ones")
    parser.add_argument("--json", action="store_true", help="print the JSON line alone")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    generated, real = (make_features(arguments.n, arguments.dim, seed) for seed in (1, 2))
    found: dict[str, dict[str, float]] = {}
    cases: dict[str, Callable[[], object]] = {
        "ours": lambda: found.update(ours=_ours(generated, real, arguments.k)),
        "torch_fidelity": lambda: found.update(torch_fidelity=_torch_fidelity(generated, real, arguments.k)),
    }
    if not arguments.skip_prdc:
        cases["prdc"] = lambda: found.update(prdc=_prdc(generated, real, arguments.k))
    seconds = interleave(cases, arguments.repeats, CPU)
    result: dict[str, Any] = {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio_torch_fidelity": ratios(seconds["torch_fidelity"], seconds["ours"]).median,
        "ratio_prdc": None if arguments.skip_prdc else ratios(seconds["prdc"], seconds["ours"]).median,
        "feature_bytes": generated.nbytes + real.nbytes,
        "metrics": found,
    }
    return result | {"peak_bytes": _own_process(_grow, (arguments.n, arguments))["peak_bytes"]}


def _ours(generated: Features, real: Features, k: int) -> dict[str, float]:
    hood = find_neighbors(build_manifold(generated, k), build_manifold(real, k))
    return {"precision": hood.precision, "recall": hood.recall, "density": hood.density(k), "coverage": hood.coverage}


def _torch_fidelity(generated: Features, real: Features, k: int) -> dict[str, float]:
    return dict(zip(("precision", "recall"), precision_recall(generated, real, k), strict=True))


def _prdc(generated: Features, real: Features, k: int) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its counts
        found = compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    return {name: float(value) for name, value in found.items()}


def _own_process(task: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """A fresh process: peak memory only ever grows."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


def _grow(n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    generated, real = (make_features(n, arguments.dim, seed) for seed in (1, 2))
    _ours(generated[:100], real[:100], arguments.k)  # loads what the first product loads
    with _watched(n) as row:
        _ours(generated, real, arguments.k)
    return row


def _stream(rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    real = make_features(arguments.n, arguments.dim, 2)
    _ours(real[:100], real[:100], arguments.k)
    with _watched(rows) as row:
        crossing = Crossing(build_manifold(real, arguments.k))
        for start in range(0, rows, STREAM_PART):
            crossing.add(make_features(min(STREAM_PART, rows - start), arguments.dim, 3 + start))
        hood = crossing.result()
    return row | {"precision": hood.precision, "coverage": hood.coverage}


@contextlib.contextmanager
def _watched(n: int) -> Iterator[dict[str, Any]]:
    """Seconds of CPU time, and the most memory beyond what was held before."""
    reset_peak(CPU)
    before, start = peak_bytes(CPU), time.process_time()
    row: dict[str, Any] = {"n": n}
    yield row
    row |= {"seconds": time.process_time() - start, "peak_bytes": peak_bytes(CPU) - before}


def _print_table(result: dict[str, Any]) -> None:
    print(f"{result['n']:,} x {result['n']:,} x {result['dim']}, k = {result['k']}", file=sys.stderr)
    for name, seconds in result.get("seconds", {}).items():
        print(f"  {name:<16}{seconds:>9.2f} s  {result['metrics'][name]}", file=sys.stderr)
    for row in [*result.get("growth", []), *([result["stream"]] if "stream" in result else [])]:
        print(f"  ours {row['n']:>9,}{row['seconds']:>9.1f} s {row['peak_bytes'] / 2**20:>8.0f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
