"""The images that the page shows of each class, in strips.parquet: at random, the rarest, and the doubtful ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from rarefy.audit.schema import STRIPS_PATH
from rarefy.audit.tables import read_rows
from rarefy.shards.metadata import column
from rarefy.shards.store import Store
from rarefy.shards.writer import encode_png

if TYPE_CHECKING:  # the page reads this file without torch
    from rarefy.audit.measure import Measured
    from rarefy.images import LabelledImages

SAMPLE, RAREST, OUTSIDE, OFF_CLASS, REAL = "sample", "rarest", "outside", "off class", "real"
OF_RUN = (SAMPLE, RAREST, OUTSIDE, OFF_CLASS)
LONGEST = 8  # images per strip
SEED = 4  # of the strips of any images
# What bounds the file and the page: images in all, at least one per strip, and pixels in all.
MOST_IMAGES = 6_000
MOST_PIXELS = 24_000_000
PER_CLASS = len(OF_RUN) + 3  # the real images' strip, and the nearest real images of two others


STRIPS_SCHEMA = pa.schema(
    [
        column("strip", pa.string(), "sample, rarest (within the real data), outside (of it), off class or real"),
        column("class_id", pa.int32(), "class"),
        column("place", pa.int32(), "place in the strip, from 0"),
        column("key", pa.string(), "sample key, or the real image's"),
        column("rarity", pa.float32(), "radius of the smallest real ball around it; null outside", "feature distance"),
        column("confidence", pa.float64(), "probability of class_id at t = 0; null for a real image", "1"),
        column("predicted_id", pa.int32(), "most probable class; null for a real image"),
        column("png", pa.binary(), "the image, made smaller if there are many"),
        column("nearest_key", pa.string(), "the nearest real image; null for a real image"),
        column("nearest_distance", pa.float32(), "distance to it; null for a real image", "feature distance"),
        column("nearest_png", pa.binary(), "the nearest real image, for the strips rarest and outside"),
    ]
)


@dataclass(frozen=True)
class StripImage:
    """A row of strips.parquet. Scores are None for a real image and without a classifier."""

    strip: str
    class_id: int
    place: int
    key: str
    rarity: float | None
    png: bytes
    confidence: float | None = None
    predicted_id: int | None = None
    nearest_key: str | None = None
    nearest_distance: float | None = None
    nearest_png: bytes | None = None


@dataclass(frozen=True)
class _Writer:
    """Turns rows of the run, and of the real images, into rows of the file. side: largest height and width."""

    measured: Measured
    baseline: LabelledImages
    side: int

    def generated(self, strip: str, class_id: int, rows: NDArray[np.int64]) -> Iterator[StripImage]:
        run, neighborhood = self.measured.run, self.measured.of_run.neighborhood
        real = self.measured.real_images
        for place, row in enumerate(rows):
            near = neighborhood.nearest_index[row]
            yield StripImage(
                strip=strip,
                class_id=class_id,
                place=place,
                key=str(run.measured.key[row]),
                rarity=float(neighborhood.rarity[row]) if neighborhood.balls[row] else None,
                png=self._png(run.images[row]),
                confidence=float(run.measured.confidence[row]) if run.scored else None,
                predicted_id=int(run.measured.predicted_id[row]) if run.scored else None,
                nearest_key=real.keys[near],
                nearest_distance=float(neighborhood.nearest[row]),
                nearest_png=self._png(real.images[near]) if strip in (RAREST, OUTSIDE) else None,
            )

    def real(self, class_id: int, rows: NDArray[np.int64]) -> Iterator[StripImage]:
        images, rarity = self.baseline, self.measured.of_baseline.neighborhood.rarity
        for place, row in enumerate(rows):
            yield StripImage(REAL, class_id, place, images.keys[row], float(rarity[row]), self._png(images.images[row]))

    def _png(self, image: NDArray[np.uint8]) -> bytes:
        png = encode_png(image)
        return png if max(image.shape[1:]) <= self.side else _smaller(png, self.side)


def write_strips(store: Store, measured: Measured) -> list[StripImage]:
    """Write strips.parquet, for every class with images, by class id, and return its rows."""
    images = list(_strips(measured))
    with store.staged(STRIPS_PATH) as path:
        table = pa.Table.from_pylist([asdict(image) for image in images], schema=STRIPS_SCHEMA)
        pq.write_table(table, path, compression="zstd")
    return images


def read_strips(store: Store) -> list[StripImage]:
    """The rows of strips.parquet, none if there is no such file. Raises ShardError if it cannot be read."""
    return [StripImage(**row) for row in read_rows(store, STRIPS_PATH)] if store.exists(STRIPS_PATH) else []


def strip_length(classes: int) -> int:
    """Images per strip."""
    return max(1, min(LONGEST, MOST_IMAGES // (PER_CLASS * classes)))


def _strips(measured: Measured) -> Iterator[StripImage]:
    classes = np.unique(measured.run.measured.class_id).tolist()
    length = strip_length(len(classes))
    baseline = measured.baseline_images
    writer = _Writer(measured, baseline, int((MOST_PIXELS / (PER_CLASS * length * len(classes))) ** 0.5))
    for class_id in classes:
        for strip in OF_RUN:
            yield from writer.generated(strip, class_id, chosen(measured, strip, class_id)[:length])
        own = np.flatnonzero(baseline.labels == class_id)
        rarity = measured.of_baseline.neighborhood.rarity[own]
        inside = np.isfinite(rarity) & (measured.of_baseline.neighborhood.balls[own] > 0)
        yield from writer.real(class_id, _highest(own[inside], rarity[inside])[:length])


def chosen(measured: Measured, strip: str, class_id: int) -> NDArray[np.int64]:
    """Measured rows of a class that belong in a strip, in its order.

    sample: in an order that is random with a fixed seed; rarest: those within the real data that the manifest's filter
    accepts, by rarity; outside: by distance to the nearest real image; off class: by confidence, lowest first.
    """
    rows, neighborhood = measured.run.measured, measured.of_run.neighborhood
    own = np.flatnonzero(rows.class_id == class_id)
    inside = neighborhood.balls[own] > 0
    if strip == SAMPLE:
        return own[np.random.default_rng([SEED, class_id]).permutation(len(own))]
    if strip == RAREST:
        kept = own[inside & rows.accepted[own]]
        return _highest(kept, neighborhood.rarity[kept])
    if strip == OUTSIDE:
        return _highest(own[~inside], neighborhood.nearest[own[~inside]])
    if not measured.run.scored:
        return own[:0]
    off = own[rows.predicted_id[own] != class_id]
    return _highest(off, -rows.confidence[off])


def _highest(rows: NDArray[np.int64], values: NDArray[np.generic]) -> NDArray[np.int64]:
    return rows[np.argsort(-values.astype(np.float64), kind="stable")]


def _smaller(png: bytes, side: int) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.thumbnail((side, side), Image.Resampling.BOX)
        image.save(buffer, format="PNG")
    return buffer.getvalue()
