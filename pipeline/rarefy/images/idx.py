"""IDX files, as MNIST and Fashion-MNIST have them. Their labels are class ids."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarefy.errors import DataError
from rarefy.images.items import Found, Skipped, Source, make_source

IDX_FILE = re.compile(r"(train|t10k)-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")


@dataclass(frozen=True, slots=True)
class ArrayPlace:
    """An image in an array (N, H, W) that was read from a file."""

    file: str
    pixels: NDArray[np.uint8]
    row: int

    def __str__(self) -> str:
        return f"image {self.row} of {self.file}"

    def open(self) -> Image.Image:
        """See Place."""
        return Image.fromarray(self.pixels[self.row])


def read_idx_source(images_file: Path, skipped: Skipped) -> Source:
    """List the images of an IDX file; its labels are in the file of the same name with ``labels`` and ``idx1``."""
    labels_file = images_file.with_name(images_file.name.replace("images", "labels").replace("idx3", "idx1"))
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not images.size:
        raise DataError(
            f"data: {images_file} has an array of shape {images.shape} and {labels_file.name} one of {labels.shape}; "
            "expected (images, height, width) and one label for each image"
        )
    names = [str(number) for number in range(int(labels.max()) + 1)]
    file = str(images_file)
    found = (Found(str(row), names[label], ArrayPlace(file, images, row)) for row, label in enumerate(labels))
    return make_source(images_file.parent, "IDX files", found, skipped, names)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, gzip or plain. Raises DataError."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
        if zero or kind != 8:
            raise ValueError("not unsigned bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"data: {path} is not a readable IDX file of unsigned bytes ({cause})") from error
