"""OpenAI's npz, which guided-diffusion's ``evaluator.py`` and other programs that compute FID read.

``arr_0``: (N, H, W, 3) uint8; ``arr_1``: (N,) int64, the class ids. Grey images get three equal channels.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rarefy.errors import ShardError
from rarefy.export.chosen import ADVICE, Chosen, Image
from rarefy.shards.reader import decode_image

CHANNELS = 3


def write_npz(chosen: Chosen, images: Iterable[Image], file: Path) -> None:
    """Write images and class ids in the order of the images. They are not compressed, like those of ``numpy.savez``.

    One image at a time is in memory.
    """
    size, count = chosen.manifest.preset.image_size, len(chosen.rows)
    labels = []
    with zipfile.ZipFile(file, "w") as archive:
        with _array(archive, "arr_0", np.dtype(np.uint8), (count, size, size, CHANNELS)) as stream:
            for image in images:
                stream.write(_pixels(image, size).tobytes())
                labels.append(image.class_id)
        with _array(archive, "arr_1", np.dtype(np.int64), (count,)) as stream:
            stream.write(np.array(labels, np.int64).tobytes())


@contextmanager
def _array(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A stream for an array's values, after its header."""
    member = zipfile.ZipInfo(f"{name}.npy")  # without a time, so that equal images give equal bytes
    with archive.open(member, "w", force_zip64=True) as stream:
        npy.write_array_header_1_0(stream, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
        yield stream


def _pixels(image: Image, size: int) -> NDArray[np.uint8]:
    """(H, W, 3)"""
    try:
        pixels = decode_image(image.png)
    except (OSError, ValueError) as cause:
        raise ShardError(f"sample {image.key}: its image cannot be decoded ({cause}){ADVICE}") from cause
    if pixels.shape[1:] != (size, size):
        raise ShardError(f"sample {image.key}: its image has the shape {pixels.shape}, not {size} x {size}{ADVICE}")
    return np.broadcast_to(pixels.transpose(1, 2, 0), (size, size, CHANNELS))
