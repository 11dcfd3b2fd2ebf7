"""Class folders: each folder has the name of a class; files nested below it belong to that class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rarefy.errors import DataError
from rarefy.images.decode import IMAGE_SUFFIXES
from rarefy.images.items import FilePlace, Found, Skipped, Source, make_source
from rarefy.images.names import is_printable, natural_order

HIDDEN = "hidden files and folders"
OTHER = "files that are not images"
UNSORTED = "images outside of class folders"
EMPTY = "classes without images"
LINKS = "broken links and special files"
LOOPS = "links to a folder that contains them"


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a name is not for people: ``.ipynb_checkpoints``, ``._x.png``, ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder contains, sorted by name. Raises DataError if it cannot be listed or a name is not UTF-8."""
    try:
        with os.scandir(folder) as found:
            inside = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"data: folder {str(folder)!r} cannot be listed ({error.strerror})") from None
    for entry in inside:
        if not is_printable(entry.name):
            raise DataError(f"data: {entry.path!a} has a name that cannot be printed; rename it")
    return inside


def read_folders(root: Path, skipped: Skipped) -> Source:
    """List the images of every class folder in ``root``, classes in natural order."""
    classes = []
    for entry in entries(root):
        if is_hidden(entry.name):
            skipped[HIDDEN].add(entry.name)
        elif entry.is_dir():
            classes.append(entry.name)
        elif entry.is_file():
            skipped[UNSORTED if is_image(entry.name) else OTHER].add(entry.name)
        else:
            skipped[LINKS].add(entry.name)
    found: list[Found] = []
    for name in sorted(classes, key=natural_order):
        files = sorted(_files(root, name, frozenset({os.path.realpath(root)}), skipped))
        if not files:
            skipped[EMPTY].add(name)
        found += (Found(file, name, FilePlace(f"{root}/{file}")) for file in files)
    return make_source(root, "class folders", found, skipped)


def _files(root: Path, inner: str, above: frozenset[str], skipped: Skipped) -> Iterator[str]:
    """Paths of the images below a folder, relative to ``root``. above: real paths of the folders that lead to it."""
    folder = root / inner
    real = os.path.realpath(folder)
    if real in above:
        skipped[LOOPS].add(inner)
        return
    for entry in entries(folder):
        name = f"{inner}/{entry.name}"
        if is_hidden(entry.name):
            skipped[HIDDEN].add(name)
        elif entry.is_dir():
            yield from _files(root, name, above | {real}, skipped)
        elif not entry.is_file():
            skipped[LINKS].add(name)
        elif is_image(name):
            yield name
        else:
            skipped[OTHER].add(name)
