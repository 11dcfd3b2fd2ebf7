"""Which images a classifier is trained on: real ones, generated ones, or both at several ratios."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.inputs.reference import rows_within

RATIOS = (0.25, 0.5, 1.0, 2.0)
REAL, GENERATED, BOTH = "real", "generated", "both"
LESS_REAL = "less real"  # not reported: the baseline of what is gained by adding images
SEED = 0

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Images uint8 (N, C, H, W) with features (N, D) and labels (N,): class ids of the model."""

    images: NDArray[np.uint8]
    features: Features
    labels: Rows

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> Examples:
        return Examples(self.images[rows], self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class Mix:
    """A training set: rows of the real and of the generated images. ratio: generated over real ones, for both only."""

    data: str
    ratio: float | None
    real: Rows
    generated: Rows

    def __len__(self) -> int:
        return len(self.real) + len(self.generated)


def plan_mixes(real: Rows, generated: Rows) -> list[Mix]:
    """The training sets for real and generated images with these labels, (R,) and (G,).

    Both: all real images with a random part of the generated ones at each of RATIOS, and with all of them, as a user
    would add them. Less real: the real images without as many per class as were generated, if that is at most half of
    each class; adding them back is what equally many real images bring.
    """
    every, made = np.arange(len(real)), np.arange(len(generated))
    none, order = made[:0], np.random.default_rng(SEED).permutation(len(generated))
    mixes = [Mix(REAL, None, every, none), Mix(GENERATED, None, none, made)]
    for ratio in RATIOS:
        if (count := round(ratio * len(real))) < len(generated):
            mixes.append(Mix(BOTH, ratio, every, np.sort(order[:count])))
    mixes.append(Mix(BOTH, len(generated) / len(real), every, made))
    counts = {int(each): int((generated == each).sum()) for each in np.unique(generated)}
    if all(2 * count <= int((real == each).sum()) for each, count in counts.items()):
        mixes.append(Mix(LESS_REAL, None, np.setdiff1d(every, rows_within(real, counts)), none))
    return mixes


def capped(real: int, generated: int) -> str:
    """Says which ratios the number of generated images does not allow; empty if none."""
    missing = [f"{ratio:g}" for ratio in RATIOS if ratio * real > generated]
    if not missing:
        return ""
    ratios = " or ".join(part for part in (", ".join(missing[:-1]), missing[-1]) if part)
    return f"{generated:,} generated images are too few for {ratios} per real one"
