"""Images on the page: inline, grouped by class."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from rarefy.audit.page.templates import number
from rarefy.audit.schema import ClassRow
from rarefy.audit.strips import OF_RUN, OFF_CLASS, OUTSIDE, RAREST, REAL, SAMPLE, StripImage

# Images with more bytes or pixels become WebP and at most this high and wide; otherwise copies of 1024 px images would
# make the page as large as a shard.
HEAVY, LARGEST = 6_000, 256
STRIP_LABELS = {
    SAMPLE: ("at random", "random images of the class"),
    RAREST: ("rarest", "the rarest images within the real data"),
    OUTSIDE: ("outside", "images outside the real data, farthest first"),
    OFF_CLASS: ("other class", "images that the classifier takes for another class, least confident first"),
    REAL: ("rarest real", "the rarest of the same number of real images"),
}
NEAREST = "nearest real"


@dataclass(frozen=True)
class Picture:
    """One image with what is said of it: alt describes it, title adds its numbers."""

    png: bytes
    alt: str
    title: str
    off_class: bool = False


@dataclass(frozen=True)
class Strip:
    """A row of images. real: they are real ones."""

    label: str
    hint: str
    real: bool
    pictures: list[Picture]


@dataclass(frozen=True)
class ImageGroup:
    """The strips of one class."""

    class_id: int
    name: str
    strips: list[Strip]


def image_groups(images: Sequence[StripImage], classes: Sequence[ClassRow], scored: bool) -> list[ImageGroup]:
    """One group per class with images, by class id. scored: a classifier scored the images."""
    names = {row.class_id: row.class_name for row in classes}
    groups: dict[int, dict[str, list[StripImage]]] = {}
    for image in sorted(images, key=lambda image: (image.class_id, image.place)):
        groups.setdefault(image.class_id, {}).setdefault(image.strip, []).append(image)
    return [ImageGroup(each, names[each], _strips(strips, names, scored)) for each, strips in groups.items()]


def _strips(strips: dict[str, list[StripImage]], names: dict[int, str], scored: bool) -> list[Strip]:
    shown = []
    for strip in (*OF_RUN, REAL):
        images = strips.get(strip, [])
        if strip == OFF_CLASS and not scored:
            continue
        shown.append(Strip(*STRIP_LABELS[strip], strip == REAL, [_picture(image, names) for image in images]))
        near = [_nearest(image) for image in images if image.nearest_png is not None]
        if near:
            shown.append(Strip(NEAREST, "the real image nearest to each image above", True, near))
    return shown


def _picture(image: StripImage, names: dict[int, str]) -> Picture:
    name = names[image.class_id]
    if image.strip == REAL:
        return Picture(image.png, f"real {name} {image.key}", f"{image.key} · rarity {number(image.rarity)}")
    parts = [image.key, "outside the real data" if image.rarity is None else f"rarity {number(image.rarity)}"]
    if image.nearest_distance is not None:
        parts.append(f"distance to the nearest real image {number(image.nearest_distance)}")
    if image.confidence is not None:
        parts.append(f"confidence {number(image.confidence)}")
    off = image.predicted_id is not None and image.predicted_id != image.class_id
    if image.predicted_id is not None and off:
        parts.append(f"taken for {names.get(image.predicted_id, image.predicted_id)}")
    return Picture(image.png, f"generated {name} {image.key}", " · ".join(parts), off)


def _nearest(image: StripImage) -> Picture:
    assert image.nearest_png is not None
    text = f"real image {image.nearest_key}"
    title = f"{text} · nearest to {image.key}, distance {number(image.nearest_distance)}"
    return Picture(image.nearest_png, text, title)


def data_uri(png: bytes, largest: int = LARGEST) -> str:
    """The image inline: the PNG itself if it is small, else WebP of at most ``largest`` pixels in height and width."""
    with Image.open(io.BytesIO(png)) as image:
        if len(png) <= HEAVY and max(image.size) <= largest:
            return "data:image/png;base64," + base64.b64encode(png).decode()
        small = image.convert("RGB")
    small.thumbnail((largest, largest), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
