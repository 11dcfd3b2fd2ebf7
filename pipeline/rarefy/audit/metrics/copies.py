"""Images that look copied: exactly or nearly, from real images or from each other within the set.

A distance needs a scale, so each is divided by the spacing of the real data there: the mean distance of the nearest
real image to its own k nearest neighbours. The real baseline counts the same among real images.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.metrics.neighbors import Floats, Indices, Manifold, Neighborhood

RATIO = 1 / 3  # fraction of the real spacing below which an image counts as copied
LISTED = 24
REFERENCE, HELD_OUT = OF_REAL = ("reference", "held-out")  # kinds in which the other image is real


@dataclass(frozen=True)
class Twin:
    """One suspected copy. row: of the generated image; kind: reference, held-out, exact or near.

    other: row of the real image (reference, held-out) or of the twin in the set (exact, near); distance: in feature
    units; ratio: distance over the real spacing there.
    """

    row: int
    kind: str
    other: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Twins:
    """copied (N,): too close to a real image; doubled (N,): has a twin in the set; listed: the closest twins."""

    copied: NDArray[np.bool_]
    doubled: NDArray[np.bool_]
    listed: list[Twin]


def spacing_ratio(distance: Floats, places: Indices, real: Manifold) -> NDArray[np.float64]:
    """(N,) distances over the mean distance of the real rows at ``places`` to their own k nearest neighbours.

    0 for identical features, infinite where the real images themselves coincide.
    """
    top, bottom = distance.astype(np.float64), real.mean_distance[places].astype(np.float64)
    ratio = np.divide(top, bottom, out=np.full_like(top, np.inf), where=bottom > 0)
    return np.asarray(np.where(top == 0, 0.0, ratio))


def find_copies(neighborhood: Neighborhood, real: Manifold, kind: str) -> tuple[NDArray[np.bool_], list[Twin]]:
    """Which generated rows look copied from the real ones, and a Twin of that kind for each, closest first."""
    ratio = spacing_ratio(neighborhood.nearest, neighborhood.nearest_index, real)
    copied = ratio < RATIO
    rows = np.flatnonzero(copied)
    twins = [
        Twin(int(row), kind, int(neighborhood.nearest_index[row]), float(neighborhood.nearest[row]), float(ratio[row]))
        for row in rows[np.argsort(ratio[rows], kind="stable")]
    ]
    return np.asarray(copied), twins


def repeated(real: Manifold) -> NDArray[np.bool_]:
    """Which real rows look copied from another real row: the baseline for ``find_copies``."""
    return np.asarray(spacing_ratio(real.nearest, real.nearest_index, real) < RATIO)


def find_duplicates(
    images: NDArray[np.uint8], own: Manifold, neighborhood: Neighborhood, real: Manifold
) -> tuple[NDArray[np.bool_], list[Twin]]:
    """Which rows have a twin in their own set: equal pixels, or features far closer than real images there."""
    ratio = spacing_ratio(own.nearest, neighborhood.nearest_index, real)
    same = _same_pixels(images)
    near = np.asarray(ratio < RATIO)
    twins = [Twin(row, "exact", other, 0.0, 0.0) for row, other in sorted(same.items())]
    rows = np.array([row for row in np.flatnonzero(near) if row not in same], np.int64)
    for row in rows[np.argsort(ratio[rows], kind="stable")]:
        twins.append(Twin(int(row), "near", int(own.nearest_index[row]), float(own.nearest[row]), float(ratio[row])))
    doubled = near.copy()
    doubled[list(same)] = True
    return doubled, twins


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


def _same_pixels(images: NDArray[np.uint8]) -> dict[int, int]:
    """For every row with the same pixels as another: one such row."""
    rows_of = defaultdict[bytes, list[int]](list)
    for row, image in enumerate(images):
        rows_of[image.tobytes()].append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    return {row: rows[0] if row != rows[0] else rows[1] for rows in groups for row in rows}
