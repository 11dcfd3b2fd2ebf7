"""How much metrics of neighbourhoods vary with other draws of both sides.

Resampling with replacement distorts neighbourhoods: a repeated row is its own neighbour. Random disjoint blocks of both
sides do not: they are fresh draws, only smaller. Metrics of neighbourhoods keep their scale when both sides shrink
alike, so if a b-th of the rows gives a metric with variance b s^2, all rows give it with variance s^2. Distances
between neighbours grow instead, and their deviations with them: these are taken relative to the blocks' mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from rarefy.audit.metrics.bootstrap import SEED, Floats

FEWEST = (125, 250)  # generated and real rows of a block for 4 or 8 blocks; with fewer rows there are 2
ROUNDS = {2: 24, 4: 8, 8: 4}  # random partitions by number of blocks: 24 to 28 deviations

Rows = NDArray[np.int64]
Labels = tuple[NDArray[np.int64], NDArray[np.int64]]


def nobody() -> None:
    """Tell nobody."""


def block_contrasts(
    labels: Labels,
    evaluate: Callable[[Rows, Rows], Floats],
    smallest: int,
    fewest: tuple[int, int] = FEWEST,
    tick: Callable[[], None] = nobody,
) -> tuple[Floats, Floats] | None:
    """(C, m) independent deviations with the spread of m metrics, and the blocks' means (m,) of them.

    None if a block would have too few rows.

    labels: classes of the generated (N,) and of the real rows (M,), by which the blocks are stratified;
    evaluate(generated rows, real rows) -> (m,) the metrics of a block; smallest: fewest rows it needs of either side;
    fewest: generated and real rows from which a block resembles the whole; tick: called before each round.
    """
    blocks = block_number(len(labels[0]), len(labels[1]), fewest)
    generators = [np.random.default_rng([SEED, side]) for side in range(2)]
    contrasts, means = list[Floats](), list[Floats]()
    for _ in range(ROUNDS[blocks]):
        tick()
        places = [assign_blocks(side, blocks, draw) for side, draw in zip(labels, generators, strict=True)]
        if min(np.bincount(side, minlength=blocks).min() for side in places) < smallest:
            return None
        values = [evaluate(*(np.flatnonzero(side == block) for side in places)) for block in range(blocks)]
        mean, *deviations = hadamard(blocks) @ np.stack(values) / blocks
        contrasts += deviations
        means.append(mean)
    return np.stack(contrasts), np.mean(means, axis=0)


def rounds(generated: int, real: int, fewest: tuple[int, int] = FEWEST) -> int:
    """How many rounds ``block_contrasts`` takes for so many rows."""
    return ROUNDS[block_number(generated, real, fewest)]


def block_number(generated: int, real: int, fewest: tuple[int, int] = FEWEST) -> int:
    """8, 4 or 2 blocks: smaller ones are quicker to compare, but must still resemble the whole."""
    return next((each for each in (8, 4) if generated >= each * fewest[0] and real >= each * fewest[1]), 2)


def assign_blocks(labels: NDArray[np.int64], blocks: int, generator: np.random.Generator) -> Rows:
    """(N,) the block of each row: random, with equally many of each class in each block, up to one."""
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    offset = np.repeat(generator.integers(0, blocks, len(counts)), counts)
    places = np.empty(len(labels), np.int64)
    places[order] = (rank + offset) % blocks
    return places
