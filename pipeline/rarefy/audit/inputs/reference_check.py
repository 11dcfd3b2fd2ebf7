"""Checks that the images of a folder are comparable with a run's; errors name the file that is not."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from rarefy.errors import DataError, bad
from rarefy.images import open_source
from rarefy.images.decode import GREY_MODES, BrokenImageError, one_line_causes, orientation, quiet_decoders
from rarefy.images.items import Item
from rarefy.images.passes import in_order


@dataclass(frozen=True)
class _Look:
    """What the check needs of an image; of one that cannot be read, the cause."""

    size: tuple[int, int] = (0, 0)
    grey: bool = False
    broken: str = ""


@quiet_decoders()
def check_reference(folder: str, size: int, channels: int) -> int:
    """Check every image of a data set; return how many differ from ``size``.

    The loader crops and shrinks larger images. Raises DataError naming the first file (or tar and member) that is
    smaller, in colour although the run is grey, or unreadable; also if all images are grey although the run is in
    colour.
    """

    def look(item: Item) -> _Look:
        try:
            with one_line_causes():
                return _look(item.place.open(), channels)
        except BrokenImageError as error:
            return _Look(broken=str(error))

    items = open_source(folder).items
    resized, grey = 0, 0
    for item, found in zip(items, in_order(look, items), strict=True):
        _refuse(item, found, size, channels)
        resized, grey = resized + (found.size != (size, size)), grey + found.grey
    if channels == 3 and items and grey == len(items):
        allowed = f"in colour like the run's images (all {len(items)} are grey)"
        raise DataError(bad(f"reference {items[-1].place}", "grey", allowed))
    return resized


def _look(image: Image.Image, channels: int) -> _Look:
    turned = orientation(image) >= 5
    grey = image.mode in GREY_MODES or (channels == 1 and _looks_grey(image))
    return _Look((image.height, image.width) if turned else image.size, grey)


def _refuse(item: Item, found: _Look, size: int, channels: int) -> None:
    name, (width, height) = f"reference {item.place}", found.size
    if found.broken:
        raise DataError(f"reference: {item.place} is not a readable image ({found.broken})")
    if min(width, height) < size:
        raise DataError(bad(name, f"{width} x {height}", f"at least the run's {size} x {size} px"))
    if channels == 1 and not found.grey:
        raise DataError(bad(name, "colour", "grey like the run's images"))


def _looks_grey(image: Image.Image) -> bool:
    """Whether all channels of a colour file are equal."""
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
