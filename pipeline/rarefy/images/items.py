"""Images that were found in a data set but not read yet, and what else was found there."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image

from rarefy.images.decode import one_line_causes, open_image
from rarefy.images.names import natural_order

FIRST = 3  # names that are kept of each kind of thing that was counted


class Place(Protocol):
    """Where the bytes of one image are. ``file`` is the file that contains them; ``str`` names them for people."""

    @property
    def file(self) -> str:
        """Path of the file that contains the image."""

    def open(self) -> Image.Image:
        """The image, whose pixels are decoded when they are used. Raises BrokenImageError."""


@dataclass(frozen=True, slots=True)
class FilePlace:
    """An image in a file of its own."""

    file: str

    def __str__(self) -> str:
        return self.file

    def open(self) -> Image.Image:
        """See Place."""
        with one_line_causes():
            data = Path(self.file).read_bytes()
        return open_image(data)


@dataclass(frozen=True, slots=True)
class Item:
    """One image. key: its name, unique in the data set; label: index of its class in the data set's names."""

    key: str
    label: int
    place: Place


@dataclass
class Tally:
    """How many there were, and the names of the first few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(name)


Skipped = defaultdict[str, Tally]
"""What was not used, by reason."""


@dataclass(frozen=True)
class Source:
    """A data set that was listed but not read. class_names: in natural order; skipped: what is not used, by reason."""

    path: str
    format: str
    class_names: tuple[str, ...]
    items: Sequence[Item]
    skipped: Skipped

    def stamp(self) -> str:
        """Hash of the images' names and of the size and time of last change of every file that contains one."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(os.fsencode(f"{item.key}\0"))
        for file in dict.fromkeys(item.place.file for item in self.items):
            status = Path(file).stat()
            digest.update(os.fsencode(f"{Path(file).absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """One image as a format's reader finds it, with the name of its class."""

    key: str
    class_name: str
    place: Place


def make_source(path: Path, form: str, found: Iterable[Found], skipped: Skipped, names: Sequence[str] = ()) -> Source:
    """Number the classes in natural order. names: the classes, even those without images (default: the images')."""
    images = list(found)
    ordered = names or sorted({image.class_name for image in images}, key=natural_order)
    ids = {name: number for number, name in enumerate(ordered)}
    items = [Item(image.key, ids[image.class_name], image.place) for image in images]
    return Source(str(path), form, tuple(ordered), items, skipped)
