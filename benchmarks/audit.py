"""The audit's k-NN pass against torch-fidelity's and prdc's: ``python -m benchmarks.audit --n 10000 --dim 1280``.

All compute precision and recall (prdc and rarefy also density and coverage) of the same features; ``products`` is only
the matrix products that these need, a bound for any exact program. prdc holds whole matrices of distances: leave it out
with ``--peers torch-fidelity`` for many rows; ``--peers`` alone times rarefy only. To see a processor without AVX-512,
set MKL_ENABLE_INSTRUCTIONS=AVX2 and ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.command import compare, make_parser
from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.distances import precision_recall
from rarefy.audit.metrics.neighbors import build_manifold, find_neighbors
from rarefy.audit.metrics.search import TILE_ROWS

PEERS = ("products", "torch-fidelity", "prdc")


def make_features(rows: int, dim: int, seed: int) -> Features:
    """(rows, dim): a bent manifold of 24 dimensions with a little noise, like features of images."""
    generator, shared = np.random.default_rng(seed), np.random.default_rng(0)
    weights = shared.standard_normal((24, dim), dtype=np.float32)
    features: Features = np.tanh(generator.standard_normal((rows, 24), dtype=np.float32) @ weights / 24**0.5)
    return features + np.float32(0.05) * generator.standard_normal((rows, dim), dtype=np.float32)


def measure(form: str, generated: Features, real: Features, k: int) -> tuple[float, float]:
    """Precision and recall by one program: rarefy, torch-fidelity or prdc."""
    if form == "rarefy":
        neighborhood = find_neighbors(build_manifold(generated, k), build_manifold(real, k))
        return neighborhood.precision, neighborhood.recall
    if form == "products":
        return multiply(generated, real)
    if form == "torch-fidelity":
        return precision_recall(generated, real, k)
    from prdc import compute_prdc

    values = compute_prdc(real_features=real, fake_features=generated, nearest_k=k)
    return values["precision"], values["recall"]


def multiply(generated: Features, real: Features) -> tuple[float, float]:
    """Nothing but the matrix products that the search needs, each pair of rows once. Returns no figures of use."""
    first, second = torch.from_numpy(generated), torch.from_numpy(real)
    last = torch.empty(0)
    for rows, others, halves in ((first, first, True), (second, second, True), (first, second, False)):
        for at in range(0, len(rows), TILE_ROWS):
            for to in range(at if halves else 0, len(others), TILE_ROWS):
                last = rows[at : at + TILE_ROWS] @ others[to : to + TILE_ROWS].T
    return float(last[0, 0]), 0.0


def start(form: str, options: argparse.Namespace) -> Callable[[], object]:
    from threadpoolctl import threadpool_limits

    threadpool_limits(options.threads)
    generated, real = (make_features(options.n, options.dim, seed) for seed in (1, 2))
    return functools.partial(measure, form, generated, real, options.k)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--n", type=int, default=10_000, help="rows of each of the two sets")
    parser.add_argument("--dim", type=int, default=1280, help="features per row")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    options = parser.parse_args(argv)
    compare(start, ["rarefy"], options.peers, options, warm_up=1)


if __name__ == "__main__":
    main()
