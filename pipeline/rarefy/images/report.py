"""What a data set contains, as the inspection found it, and the text that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rarefy.images.items import Tally

SMALL = 64  # up to this side the suggested size follows the images in steps of 4 pixels
LARGE_SIZES = (64, 96, 128, 192, 256)
COMMON_SHARE = 0.1  # of the images may be smaller than the suggested size
PAIRS = 3  # duplicates that the text shows
LISTED_CLASSES = 20  # with more classes the text shows the largest and the smallest ones
ENDS = 5
LISTED_SIZES = 4
NAME_WIDTH = 40


@dataclass
class Duplicates:
    """Images with exactly the pixels of an earlier one. across: those whose classes differ. pairs: the first few."""

    count: int = 0
    across: int = 0
    pairs: list[tuple[str, str]] = field(default_factory=list)
    pairs_across: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Inspection:
    """What a data set contains.

    path, format: where it is and how it is stored; counts: images by class, in natural order of the names; sizes:
    number of images by (width, height) when upright; modes: by Pillow mode; grey: images without colour, whatever their
    mode; turned: those that EXIF data turn upright; transparent: those with transparency; animated: those with several
    frames, of which the first is used; nested: images in a folder within their class's folder; skipped: what else is
    there, by reason; broken: unreadable images.
    """

    path: str
    format: str
    counts: dict[str, int]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    grey: int = 0
    turned: int = 0
    transparent: int = 0
    animated: Tally = field(default_factory=Tally)
    nested: int = 0
    skipped: Mapping[str, Tally] = field(default_factory=dict)
    broken: Tally = field(default_factory=Tally)
    duplicates: Duplicates = field(default_factory=Duplicates)

    @property
    def images(self) -> int:
        """Number of readable images."""
        return sum(self.counts.values())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in natural order, which is the order of ``load_images``."""
        return tuple(self.counts)

    @property
    def channels(self) -> int:
        """Channels that a model of these images needs: 1 if all are grey, else 3."""
        return 1 if self.grey == self.images else 3

    @property
    def suggested_size(self) -> int:
        """Height and width that a model could have, at most 256: nine of ten images are at least as large."""
        sides = np.repeat([min(size) for size in self.sizes], list(self.sizes.values()))
        side = int(np.quantile(sides, COMMON_SHARE, method="lower"))
        if side <= SMALL:
            return max(8, side // 4 * 4)
        return max(size for size in LARGE_SIZES if size <= side)

    def text(self) -> str:
        """What a person should know of the data, in a few lines."""
        return "\n".join(_lines(self))


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.path}: {_number(found.images, 'image')} in {_number(len(found.counts), 'class')} ({found.format})"
    yield from _class_lines(found.counts)
    if found.nested and len(found.counts) == 1:
        (name,) = found.counts
        yield f"There is only one class. If the folders within {name!r} are the classes, give the path of {name!r}."
    yield _size_line(found.sizes)
    yield _colour_line(found)
    yield from _decoding_lines(found)
    if found.broken.count:
        yield f"Left out because they cannot be read: {found.broken.count:,} ({_named(found.broken)})"
    yield from _duplicate_lines(found.duplicates)
    if found.skipped:
        yield "Not used:"
        yield from (f"  {line}" for line in skipped_lines(found.skipped))
    else:
        yield "Nothing was skipped."


def skipped_lines(skipped: Mapping[str, Tally]) -> Iterator[str]:
    """What was not used: a reason, how many there were, and the first few."""
    return (f"{reason}: {tally.count:,} ({_named(tally)})" for reason, tally in skipped.items())


def _class_lines(counts: Mapping[str, int]) -> Iterator[str]:
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    width = min(NAME_WIDTH, max(map(len, counts)))
    digits = len(f"{ordered[0][1]:,}")
    if len(ordered) <= LISTED_CLASSES:
        shown = ordered
    else:
        median = int(np.median(list(counts.values())))
        yield f"  {ordered[-1][1]:,} to {ordered[0][1]:,} images per class, median {median:,}; largest and smallest:"
        shown = [*ordered[:ENDS], ("...", -1), *ordered[-ENDS:]]
    for name, count in shown:
        short = name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}..."
        yield f"  {short:{width}}  {count:>{digits},}" if count >= 0 else f"  {name}"
    if (ratio := ordered[0][1] / max(1, ordered[-1][1])) >= 2:
        yield f"The largest class has {ratio:,.0f} times as many images as the smallest."


def _size_line(sizes: Counter[tuple[int, int]]) -> str:
    common, total = sizes.most_common(LISTED_SIZES), sum(sizes.values())
    if len(common) == 1:
        return f"Size: all images have {common[0][0][0]} x {common[0][0][1]} pixels."
    parts = [f"{width} x {height} ({count / total:.0%})" for (width, height), count in common]
    sides = sorted(min(size) for size in sizes), sorted(max(size) for size in sizes)
    rest = f" and {len(sizes) - len(common):,} other sizes" if len(sizes) > len(common) else ""
    square = "" if all(width == height for width, height in sizes) else "; only the central square of an image is used"
    return f"Size: {', '.join(parts)}{rest}; sides from {sides[0][0]} to {sides[1][-1]:,} pixels{square}."


def _colour_line(found: Inspection) -> str:
    if found.grey == found.images:
        colour = "all images are grey"
    elif found.grey:
        colour = f"{found.images - found.grey:,} images have colour, {found.grey:,} are grey"
    else:
        colour = "all images have colour"
    modes = ", ".join(f"{mode} {count:,}" for mode, count in found.modes.most_common())
    return f"Colour: {colour} (stored as {modes})."


def _decoding_lines(found: Inspection) -> Iterator[str]:
    if found.turned:
        yield f"Turned upright as their EXIF data say: {found.turned:,}"
    if found.transparent:
        yield f"With transparency, put on white: {found.transparent:,}"
    if found.animated.count:
        yield f"Animated, first frame used: {found.animated.count:,} ({_named(found.animated)})"


def _duplicate_lines(duplicates: Duplicates) -> Iterator[str]:
    if not duplicates.count:
        yield "No image occurs twice."
    if within := duplicates.count - duplicates.across:
        yield f"Exact duplicates within a class: {within:,} ({_pairs(duplicates.pairs)})"
    if duplicates.across:
        pairs = _pairs(duplicates.pairs_across)
        yield f"Exact duplicates in different classes, of which one label is wrong: {duplicates.across:,} ({pairs})"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{one} = {other}" for one, other in pairs)


def _number(count: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def _named(tally: Tally) -> str:
    more = ", ..." if tally.count > len(tally.first) else ""
    return ", ".join(tally.first) + more
