"""The rule by which an image counts as copied: from a real image, or from another image of its own set.

An image is compared with others by pixels (after the best flip, shift, brightness and contrast) and by features. Each
distance is divided by the spacing of the real images there, and compared with what real images that no training step
saw reach: at most 0.5% of them may count as copies, so that other real images stay below 1% with room for chance.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.images import pixel_digest

ALARMS = 0.0025  # largest fraction of the unseen real images that each of the two distances may flag
CAP = 0.5  # fraction of the spacing that no limit exceeds, however few real images there are
FEW_CAP = 0.25  # the same with fewer than 1 / ALARMS of them, which say too little; also the limit without any
RANKS = (8, 17)
LISTED = 24
TRAINING, REFERENCE, HELD_OUT = OF_REAL = ("training", "reference", "held-out")  # kinds: the other image is real

Indices = NDArray[np.int64]
Ratios = NDArray[np.float64]


@dataclass(frozen=True)
class Twin:
    """One suspected copy. row: of the generated image; kind: training, reference, held-out, exact or near.

    other: row of the real image (training, reference, held-out) or of the twin in the set (exact, near); distance: root
    mean square difference in grey levels after the best flip, shift, brightness and contrast; ratio: the distance over
    the largest that still counts as a copy there, 0 to 1.
    """

    row: int
    kind: str
    other: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Twins:
    """Copies and duplicates among N generated images.

    ratio (N,): distance to the most similar real image over the largest that counts as a copy: below 1 is a copy;
    copied (N,): such a copy; doubled (N,): has a twin in the set; listed: the closest twins.
    """

    ratio: Ratios
    copied: NDArray[np.bool_]
    doubled: NDArray[np.bool_]
    listed: list[Twin]


@dataclass(frozen=True)
class Closeness:
    """How close each of N images is to its most similar one: distances over the spacing of the real images there.

    pixel, feature (N,): by pixels and by features; pixel_index, feature_index (N,): which image that is.
    """

    pixel: Ratios
    feature: Ratios
    pixel_index: Indices
    feature_index: Indices

    def take(self, rows: Indices) -> Closeness:
        return Closeness(self.pixel[rows], self.feature[rows], self.pixel_index[rows], self.feature_index[rows])


@dataclass(frozen=True)
class Rule:
    """The largest ratios that count as a copy."""

    pixel: float
    feature: float

    def ratio(self, closeness: Closeness) -> Ratios:
        """(N,) how close each image is to its most similar one, relative to the rule: below 1 counts as a copy."""
        return np.asarray(np.minimum(closeness.pixel / self.pixel, closeness.feature / self.feature))

    def other(self, closeness: Closeness) -> Indices:
        """(N,) the image that ``ratio`` refers to."""
        by_pixels = closeness.pixel / self.pixel <= closeness.feature / self.feature
        return np.asarray(np.where(by_pixels, closeness.pixel_index, closeness.feature_index))


UNCALIBRATED = Rule(FEW_CAP, FEW_CAP)


def calibrate(unseen: Closeness) -> Rule:
    """The rule by which at most 0.5% of these real images, which no training step saw, count as copies."""
    return Rule(_limit(unseen.pixel), _limit(unseen.feature))


def spacing_ratios(distance: NDArray[np.floating], spacing: Ratios | None = None) -> Ratios:
    """(N,) nearest distances over the spacing, from the distances (N, K) to the nearest real images, ascending.

    spacing (N,): by default ``real_spacing`` of the same distances. 0 where the nearest distance is 0.
    """
    if distance.shape[1] == 0:
        return np.full(len(distance), np.inf)
    nearest, scale = distance[:, 0].astype(np.float64), real_spacing(distance) if spacing is None else spacing
    ratio = np.divide(nearest, scale, out=np.full_like(nearest, np.inf), where=scale > 0)
    return np.asarray(np.where(nearest == 0, 0.0, ratio))


def real_spacing(distance: NDArray[np.floating]) -> Ratios:
    """(N,) mean distance of the ninth to the seventeenth nearest real image; of the last ones if there are fewer.

    The nearest ones set no scale, because data may hold the same picture several times, slightly changed.
    """
    first = max(0, min(RANKS[0], distance.shape[1] - 1))
    return np.asarray(distance[:, first : RANKS[1]].astype(np.float64).mean(axis=1))


def same_pixels(images: NDArray[np.uint8]) -> dict[int, int]:
    """For every row with the same pixels as another: one such row."""
    rows_of = defaultdict[bytes, list[int]](list)
    for row, image in enumerate(images):
        rows_of[pixel_digest(image)].append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    return {row: rows[0] if row != rows[0] else rows[1] for rows in groups for row in rows}


def listed(groups: list[list[Twin]]) -> list[Twin]:
    """At most 24 twins, taken from the groups in turn so that none crowds out the others; each pair is listed once."""
    queues, shown, seen = [list(group) for group in groups], list[Twin](), set[tuple[str, int, int]]()
    while any(queues) and len(shown) < LISTED:
        for queue in queues:
            if queue and len(shown) < LISTED:
                twin = queue.pop(0)
                pair = (twin.row, twin.other) if twin.kind in OF_REAL else tuple(sorted((twin.row, twin.other)))
                mark = (twin.kind, pair[0], pair[1])
                if mark not in seen:
                    seen.add(mark)
                    shown.append(twin)
    return shown


def _limit(ratios: Ratios) -> float:
    """The largest limit that at most ``ALARMS`` of the ratios lie below; images that are equal to one do not count."""
    apart = np.sort(ratios[ratios > 0])
    if not len(apart):
        return FEW_CAP
    cap = CAP if ALARMS * len(apart) >= 1 else FEW_CAP
    return float(min(cap, apart[int(ALARMS * len(apart))]))
