"""Decoded images of large data sets, on disk: made once, memory-mapped by all processes of a machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import DataError
from rarefy.images.decode import DECODER_VERSION
from rarefy.user_cache import locked, user_cache


@dataclass(frozen=True)
class Decoded:
    """images: (N, C, size, size) uint8 of the items that can be read; broken: cause by row of the items that cannot."""

    images: NDArray[np.uint8]
    broken: dict[int, str]


Row = NDArray[np.uint8] | str
"""Pixels of an image, or why it cannot be read."""


def cached_images(stamp: str, shape: tuple[int, int, int, int], rows: Callable[[], Iterable[Row]]) -> Decoded:
    """The decoded images of a listing, from the cache; ``rows`` decodes them if the cache does not have them yet.

    stamp: hash of the listing; shape: of all images. The cache is ``images`` in the user's cache folder. Processes that
    need the same images at the same time wait for the one that decodes them. Raises DataError if the cache cannot be
    written; then nothing is left of it.
    """
    key = hashlib.sha256(json.dumps([stamp, shape, DECODER_VERSION]).encode()).hexdigest()[:32]
    folder = user_cache() / "images" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write(folder, shape, rows())
        return _read(folder)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"data: the cache of decoded images {str(folder)!r} is damaged ({reason}); delete it") from None
    except OSError as error:
        size = int(np.prod(shape)) / 1e9
        raise DataError(
            f"data: the cache of decoded images {str(folder.parent)!r} cannot be used ({error.strerror or error}); it "
            f"needs {size:.1f} GB: set XDG_CACHE_HOME to a folder with that much space"
        ) from None


def _read(folder: Path) -> Decoded:
    # Copy-on-write: torch warns of arrays that cannot be written.
    images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
    broken = json.loads((folder / "broken.json").read_text())
    return Decoded(np.asarray(images), {int(row): cause for row, cause in broken.items()})


def _write(folder: Path, shape: tuple[int, int, int, int], rows: Iterable[Row]) -> None:
    """Write to a private folder, then rename it, so that nobody sees half a cache.

    Plain writes, because a memory map on a full disk would kill the process.
    """
    for left in folder.parent.glob(f"{folder.name}.part-*"):  # left by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    private = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.part-"))
    broken: dict[int, str] = {}
    try:
        with (private / "images.npy").open("wb") as file:
            _write_header(file, shape)
            for number, row in enumerate(rows):
                if isinstance(row, str):
                    broken[number] = row
                else:
                    file.write(row.tobytes())
            file.seek(0)
            _write_header(file, (shape[0] - len(broken), *shape[1:]))
            os.fsync(file.fileno())
        (private / "broken.json").write_text(json.dumps(broken))
        private.replace(folder)
    except BaseException:
        shutil.rmtree(private, ignore_errors=True)
        raise


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """The header of an .npy file; numpy pads it so that its length does not depend on the number of rows."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
