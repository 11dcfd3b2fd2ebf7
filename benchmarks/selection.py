"""What [select] changes: ``python -m benchmarks.selection OUT --from 4``.

OUT is a sealed run without [select]. Its images are the pool, from which each rule keeps a part of every class.
The first row is what chance keeps: random draws of as many images per class, mean and standard deviation. All rows have
equal numbers of images and are compared with the model's real images. No new image is sampled.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features, kept_outputs, load_extractor
from rarefy.audit.inputs.dataset import RunData, read_run
from rarefy.audit.inputs.reference import load_reference, rows_within
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.metrics.distances import frechet_distance
from rarefy.audit.metrics.neighbors import Bools, Manifold, build_manifold, find_neighbors
from rarefy.audit.rarity.compute import finite_rarity
from rarefy.errors import DataError, bad
from rarefy.manifest import Manifest
from rarefy.select.choice import choose
from rarefy.select.stage import SelectOptions, measure_pool
from rarefy.selection import BY_RARITY, BY_SCORE, Select
from rarefy.shards.store import Store

EVERY = 10**9  # no limit
COLUMNS = ("rarity", "outside", "on class", "precision", "recall", "tail recall", "FID")


@dataclass(frozen=True)
class Pool:
    """The run's images and features, and the real ones to compare with. tail: rows of the rarest real images."""

    run: RunData
    features: Features
    real: Manifold
    tail: Bools


def load_pool(store: Store) -> Pool:
    """Read the run, measure the rarity of its images and compute the features of all."""
    run = read_run(store, EVERY)
    if run.manifest.select is not None or run.problems:
        raise DataError(bad("run", store.root, "a whole run without [select]"))
    measure_pool(store, run.manifest, SelectOptions(), lambda *_: None)
    reference, extractor = load_reference(run.manifest.preset, None), load_extractor()
    assert reference is not None
    real = build_manifold(kept_outputs(reference.real.images, extractor), DEFAULT_K)
    # The tail of each class: the rarest fifth of its real images.
    tail = np.zeros(len(real.features), bool)
    for class_id in np.unique(reference.real.labels):
        own = np.flatnonzero(reference.real.labels == class_id)
        tail[own] = real.mean_distance[own] >= np.quantile(real.mean_distance[own], 0.8)
    return Pool(run, kept_outputs(run.images, extractor), real, tail)


def measures(pool: Pool, rows: NDArray[np.int64]) -> list[float]:
    """The values of COLUMNS for these images. rarity: mean over images inside the real data."""
    found = find_neighbors(build_manifold(pool.features[rows], DEFAULT_K), pool.real)
    inside, labels = found.balls > 0, pool.run.measured
    return [
        float(finite_rarity(found)[inside].mean()),
        float((~inside).mean()),
        float((labels.predicted_id[rows] == labels.class_id[rows]).mean()),
        found.precision,
        found.recall,
        float(found.recalled[pool.tail].mean()),
        frechet_distance(pool.features[rows], pool.real.features),
    ]


def selected_rows(store: Store, pool: Pool, select: Select) -> NDArray[np.int64]:
    """The images that a rule keeps of the run. Raises DataError for counts that ``from`` does not divide."""
    manifest = with_select(pool.run.manifest, select)
    keys = {int(key) for own in choose(store, manifest).keys.values() for key in own}
    return np.flatnonzero([int(key) in keys for key in pool.run.measured.key])


def with_select(manifest: Manifest, select: Select) -> Manifest:
    """The run's manifest as if its images were the pool of [select]."""
    if wrong := [count for count in manifest.counts.values() if count % select.times]:
        raise DataError(bad("from", select.times, f"a divisor of the {wrong[0]} images of each class"))
    kept = {class_id: count // select.times for class_id, count in manifest.counts.items()}
    return replace(manifest, counts=kept, select=select)


def table(store: Store, times: int, draws: int) -> Iterator[str]:
    """The lines of the table."""
    pool = load_pool(store)
    kept = with_select(pool.run.manifest, Select(times)).counts
    yield "kept by".ljust(32) + "".join(f"{name:>18}" for name in COLUMNS)
    chance = np.array([measures(pool, random_rows(pool, kept, seed)) for seed in range(draws)])
    cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(chance.mean(0), chance.std(0, ddof=1), strict=True)]
    yield f"chance ({draws} draws)".ljust(32) + "".join(f"{cell:>18}" for cell in cells)
    for by in BY_RARITY + BY_SCORE:
        for only in (True, False):
            rows = selected_rows(store, pool, Select(times, by=by, on_class=only, inside=only))
            name = f"{by}{', on class and inside' if only else ''}"
            yield name.ljust(32) + "".join(f"{value:>18.3f}" for value in measures(pool, rows))


def random_rows(pool: Pool, counts: dict[int, int], seed: int) -> NDArray[np.int64]:
    """Random images of the run, as many per class as the rules keep."""
    order = np.random.default_rng(seed).permutation(len(pool.run.measured))
    return np.sort(order[rows_within(pool.run.measured.class_id[order], counts)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="OUT", help="a sealed run without [select]")
    parser.add_argument("--from", dest="times", type=int, default=4, help="pool images per kept one (default 4)")
    parser.add_argument("--draws", type=int, default=10, help="random draws of the first row (default 10)")
    options = parser.parse_args(argv)
    for line in table(Store(options.run), options.times, options.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()
