"""One pass over a data set: every image is read and decoded once, to find out what the set contains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rarefy.errors import DataError
from rarefy.images.decode import GREY_MODES, BrokenImageError, one_line_causes, orientation, quiet_decoders, upright
from rarefy.images.items import Item, Source
from rarefy.images.names import check_distinct
from rarefy.images.passes import Progress, in_order
from rarefy.images.report import PAIRS, Duplicates, Inspection
from rarefy.images.sources import CLASS_FOLDERS, open_source


@dataclass(frozen=True)
class Facts:
    """What one image file is. size: width and height when upright; digest: equal for equal pixels."""

    size: tuple[int, int]
    mode: str
    grey: bool
    turned: bool
    transparent: bool
    animated: bool
    digest: bytes


@quiet_decoders()
def inspect_images(
    source: str | Path, split: str = "train", skip_broken: bool = False, progress: Progress | None = None
) -> Inspection:
    """Read every image of a data set once, in threads, and say what is there.

    skip_broken: count images that cannot be read instead of raising. Raises DataError: for no data set, for
    classes with equal names, and for broken images, naming the first and their number.
    """
    found = open_source(source, split)
    check_distinct(found.class_names)
    result = Inspection(found.path, found.format, dict.fromkeys(found.class_names, 0), skipped=found.skipped)
    first: dict[bytes, int] = {}
    cause = ""
    for row, facts in enumerate(in_order(_facts, found.items, progress)):
        if isinstance(facts, str):
            cause = cause or facts
            result.broken.add(str(found.items[row].place))
        else:
            _count(result, found, row, facts)
            _compare(result.duplicates, found.items, first.setdefault(facts.digest, row), row)
    if result.broken.count and not (skip_broken and result.images):
        raise DataError(
            f"data: {result.broken.first[0]} is not a readable image ({cause}); {result.broken.count:,} of "
            f"{len(found.items):,} images cannot be read"
        )
    return result


def _facts(item: Item) -> Facts | str:
    try:
        with one_line_causes():
            return _look(item.place.open())
    except BrokenImageError as error:
        return str(error)


def _look(image: Image.Image) -> Facts:
    animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))  # MPO: a phone's preview or depth
    mode, turned, transparent = image.mode, orientation(image) != 1, image.has_transparency_data
    whole = upright(image)
    pixels = np.asarray(whole.convert("L" if whole.mode in GREY_MODES else "RGB"))
    grey = pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all())
    shown = np.ascontiguousarray(pixels[..., 0]) if grey and pixels.ndim == 3 else pixels
    digest = hashlib.blake2b(shown.tobytes(), digest_size=16, person=f"{whole.width}x{whole.height}".encode()[:16])
    return Facts(whole.size, mode, grey, turned, transparent, animated, digest.digest())


def _count(result: Inspection, found: Source, row: int, facts: Facts) -> None:
    item = found.items[row]
    result.nested += found.format == CLASS_FOLDERS and item.key.count("/") > 1
    result.counts[found.class_names[item.label]] += 1
    result.sizes[facts.size] += 1
    result.modes[facts.mode] += 1
    result.grey += facts.grey
    result.turned += facts.turned
    result.transparent += facts.transparent
    if facts.animated:
        result.animated.add(item.key)


def _compare(duplicates: Duplicates, items: Sequence[Item], earlier: int, row: int) -> None:
    if earlier == row:
        return
    across = items[earlier].label != items[row].label
    duplicates.count += 1
    duplicates.across += across
    pairs = duplicates.pairs_across if across else duplicates.pairs
    if len(pairs) < PAIRS:
        pairs.append((items[earlier].key, items[row].key))
