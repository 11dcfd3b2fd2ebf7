"""Images that look copied: from the real images, exactly or nearly, or from each other within the set.

A distance means nothing without a scale, so each is divided by the spacing of the real data around it: the mean
distance of the real image at hand to its own k nearest others. The real-real floor counts the same of real images.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.metrics.neighbors import Floats, Indices, Manifold, Neighborhood

RATIO = 1 / 3  # of the real spacing; real images are this near to each other only where they are twins
LISTED = 24
REFERENCE, HELD_OUT = OF_REAL = ("reference", "held-out")  # kinds whose other image is a real one


@dataclass(frozen=True)
class Twin:
    """One suspicion. row: generated; other: row of the twin (exact, near) or of the real image (reference, held-out).

    kind: which of those; distance: in feature units; ratio: over the real spacing there.
    """

    row: int
    kind: str
    other: int
    distance: float
    ratio: float


@dataclass(frozen=True)
class Twins:
    """copied (N,): too near a real image; doubled (N,): has an exact or near twin in the set; listed: the worst."""

    copied: NDArray[np.bool_]
    doubled: NDArray[np.bool_]
    listed: list[Twin]


def spacing_ratio(distance: Floats, places: Indices, real: Manifold) -> NDArray[np.float64]:
    """(N,) distances over the spacing of the real rows at ``places``: their mean distance to their own k nearest."""
    return _divide(distance, real.mean_distance[places])


def find_copies(hood: Neighborhood, real: Manifold, kind: str) -> tuple[NDArray[np.bool_], list[Twin]]:
    """Which generated rows look copied from the real ones, and each as a suspicion of that kind, closest first."""
    ratio = spacing_ratio(hood.nearest, hood.nearest_index, real)
    copied = ratio < RATIO
    rows = np.flatnonzero(copied)
    found = [
        Twin(int(row), kind, int(hood.nearest_index[row]), float(hood.nearest[row]), float(ratio[row]))
        for row in rows[np.argsort(ratio[rows], kind="stable")]
    ]
    return np.asarray(copied), found


def repeated(real: Manifold) -> NDArray[np.bool_]:
    """Which real rows would look copied from another of their own: what ``find_copies`` must be read against."""
    return np.asarray(spacing_ratio(real.nearest, real.nearest_index, real) < RATIO)


def find_duplicates(
    images: NDArray[np.uint8], own: Manifold, hood: Neighborhood, real: Manifold
) -> tuple[NDArray[np.bool_], list[Twin]]:
    """Which rows have a twin in their own set: the same pixels, or features far nearer than real images lie there."""
    ratio = spacing_ratio(own.nearest, hood.nearest_index, real)
    same = _same_pixels(images)
    near = np.asarray(ratio < RATIO)
    found = [Twin(row, "exact", other, 0.0, 0.0) for row, other in sorted(same.items())]
    rows = np.array([row for row in np.flatnonzero(near) if row not in same], np.int64)
    for row in rows[np.argsort(ratio[rows], kind="stable")]:
        found.append(Twin(int(row), "near", int(own.nearest_index[row]), float(own.nearest[row]), float(ratio[row])))
    doubled = near.copy()
    doubled[list(same)] = True
    return doubled, found


def listed(groups: list[list[Twin]]) -> list[Twin]:
    """At most 24 suspicions, the groups taking turns so that none hides the others; a pair is listed once."""
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
    """Another row of the same pixels, for every row that has one."""
    rows_of = defaultdict[bytes, list[int]](list)
    for row, image in enumerate(images):
        rows_of[image.tobytes()].append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    return {row: rows[0] if row != rows[0] else rows[1] for rows in groups for row in rows}


def _divide(distance: Floats, spacing: Floats) -> NDArray[np.float64]:
    """distance / spacing; 0 for identical features, infinite where the real images themselves coincide."""
    top, bottom = distance.astype(np.float64), spacing.astype(np.float64)
    ratio = np.divide(top, bottom, out=np.full_like(top, np.inf), where=bottom > 0)
    return np.asarray(np.where(top == 0, 0.0, ratio))
