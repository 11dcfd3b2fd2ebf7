"""Checks that the images of a folder are comparable with a run's; errors name the file that is not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image

from rarefy.errors import DataError, bad
from rarefy.images import IMAGE_SUFFIXES

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "F"})


def check_reference(folder: str, size: int, channels: int) -> int:
    """Check every image of class folders or tars; return how many differ from ``size``. The loader checks IDX files.

    The loader crops and shrinks larger images. Raises DataError naming the first file (or tar and key) that is smaller,
    in colour although the run is grey, or unreadable; also if all images are grey although the run is in colour.
    """
    resized, grey, seen = 0, 0, 0
    for name, source in _sources(Path(folder)):
        try:
            with Image.open(source) as image:
                width, height = image.size
                is_grey = image.mode in GREY_MODES or (channels == 1 and _looks_grey(image))
        except (OSError, SyntaxError) as error:
            raise DataError(f"reference: {name} is not a readable image ({' '.join(str(error).split())})") from None
        if min(width, height) < size:
            raise DataError(bad(f"reference {name}", f"{width} x {height}", f"at least the run's {size} x {size} px"))
        if channels == 1 and not is_grey:
            raise DataError(bad(f"reference {name}", "colour", "grey like the run's images"))
        resized, grey, seen = resized + ((width, height) != (size, size)), grey + is_grey, seen + 1
        last = name
    if channels == 3 and seen and grey == seen:
        raise DataError(bad(f"reference {last}", "grey", f"in colour like the run's images (all {seen} are grey)"))
    return resized


def _sources(folder: Path) -> Iterator[tuple[str, Path | IO[bytes]]]:
    if any(folder.glob("*-images-idx3-ubyte*")):
        return
    if tars := sorted(folder.glob("*.tar")):
        for tar in tars:
            yield from _members(tar)
        return
    for inner in sorted(folder.glob("*/")):
        yield from ((str(file), file) for file in sorted(inner.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES)


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    last = "none"
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None and member.name.lower().endswith(IMAGE_SUFFIXES):
                    yield f"{path} {member.name}", io.BytesIO(stream.read())
                last = member.name
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"reference: {path} is truncated or damaged after {last} ({error})") from None


def _looks_grey(image: Image.Image) -> bool:
    """Whether all channels of a colour file are equal."""
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
