"""Decodes a whole data set: into memory or, if it is large, into a cache on disk that processes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rarefy.errors import DataError
from rarefy.images.cache import Decoded, Row, cached_images
from rarefy.images.decode import BrokenImageError, quiet_decoders, to_pixels
from rarefy.images.items import Item, Source
from rarefy.images.labelled import LabelledImages
from rarefy.images.names import ClassNames, match_classes
from rarefy.images.passes import Progress, in_order
from rarefy.images.report import skipped_lines
from rarefy.images.sources import open_source

CACHE_ABOVE_BYTES = 512 << 20


@quiet_decoders()
def load_images(
    source: str | Path,
    size: int,
    channels: int,
    split: str = "train",
    *,
    classes: ClassNames | None = None,
    skip_broken: bool = False,
    cache_above_bytes: int = CACHE_ABOVE_BYTES,
    progress: Progress | None = None,
) -> LabelledImages:
    """Read a data set as ``size`` x ``size`` images with ``channels`` channels (1 or 3).

    source: class folders, WebDataset shards, Parquet, Arrow or IDX files (``open_source``); split: train or test.
    Images of another size are centre-cropped and resized; ``to_pixels`` has the rules of decoding.
    classes: the classes of a model; labels are then its ids, matched by name, and class_names its names. Without them
    the data's own names are numbered in natural order (2 before 10).
    skip_broken: leave out images that cannot be read, and name them in ``broken``, instead of raising.
    cache_above_bytes: decoded sets above this size are memory-mapped from the user's cache folder.
    Raises DataError, which names path and cause.
    """
    found = open_source(source, split)
    ids = range(len(found.class_names)) if classes is None else class_ids(found, classes)
    shape = (len(found.items), channels, size, size)
    if int(np.prod(shape)) > cache_above_bytes:
        decoded = cached_images(found.stamp(), shape, lambda: _rows(found.items, shape, skip_broken, progress))
    else:
        decoded = _in_memory(_rows(found.items, shape, skip_broken, progress), shape)
    for row, cause in decoded.broken.items():
        if not skip_broken:
            raise broken_error(found.items[row], cause)
    kept = [item for row, item in enumerate(found.items) if row not in decoded.broken]
    if not kept:
        raise DataError(f"data: none of the {len(found.items):,} images of {str(source)!r} can be read")
    return LabelledImages(
        images=decoded.images,
        labels=np.array([ids[item.label] for item in kept], np.int64),
        class_names=found.class_names if classes is None else classes.names,
        keys=tuple(item.key for item in kept),
        broken=tuple(str(found.items[row].place) for row in decoded.broken),
        skipped=tuple(skipped_lines(found.skipped)),
    )


def broken_error(item: Item, cause: str) -> DataError:
    """The error for an image that cannot be read."""
    return DataError(f"data: {item.place} is not a readable image ({cause})")


def class_ids(found: Source, classes: ClassNames) -> dict[int, int]:
    """The model's class id by label, for the classes of the data that have an image. Raises DataError."""
    used = sorted({item.label for item in found.items})
    matches = match_classes([found.class_names[label] for label in used], classes.names, classes.wordnet_ids)
    return dict(zip(used, matches, strict=True))


def _rows(
    items: Sequence[Item], shape: tuple[int, int, int, int], skip_broken: bool, progress: Progress | None
) -> Iterator[Row]:
    """Decoded images in order. Raises DataError at the first broken one unless they may be left out."""
    _, channels, size, _ = shape

    def decode(item: Item) -> Row:
        try:
            return to_pixels(item.place.open(), size, channels)
        except BrokenImageError as error:
            return str(error)

    for item, row in zip(items, in_order(decode, items, progress), strict=True):
        if isinstance(row, str) and not skip_broken:
            raise broken_error(item, row)
        yield row


def _in_memory(rows: Iterator[Row], shape: tuple[int, int, int, int]) -> Decoded:
    images, broken, filled = np.empty(shape, np.uint8), dict[int, str](), 0
    for number, row in enumerate(rows):
        if isinstance(row, str):
            broken[number] = row
        else:
            images[filled] = row
            filled += 1
    return Decoded(images[:filled] if filled < len(images) else images, broken)
