"""Decoding of one image to 8-bit pixels of the model's size: orientation, transparency, 16 bits, crop."""

from __future__ import annotations

import importlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rarefy.errors import DataError

DECODER_VERSION = 1  # part of the cache's key: increase it when equal files give other pixels
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
# Pillow chooses the decoder by content, among these only: others, such as EPS, would start programs.
PLUGINS = {
    "PNG": "Png",
    "JPEG": "Jpeg",
    "WEBP": "WebP",
    "BMP": "Bmp",
    "GIF": "Gif",
    "TIFF": "Tiff",
    "PPM": "Ppm",
}
# Image.open loads only some of them, and two threads may not load one at the same time.
for plugin in PLUGINS.values():
    importlib.import_module(f"PIL.{plugin}ImagePlugin")
MAX_PIXELS = 89_478_485  # Pillow's limit, above which it warns of a decompression bomb
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
# What Pillow raises for damaged files of different formats.
PILLOW_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


class BrokenImageError(DataError):
    """An image that cannot be decoded. The message is the cause alone; callers add the name."""


@contextmanager
def one_line_causes() -> Iterator[None]:
    """Turns whatever a decoder raises into BrokenImageError with a message of one line."""
    try:
        yield
    except BrokenImageError:
        raise
    except UnidentifiedImageError:
        raise BrokenImageError(f"its content is none of {', '.join(PLUGINS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenImageError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except PILLOW_ERRORS as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise BrokenImageError(" ".join(cause.split())) from None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silences the decoders' own warnings: what they warn of is either refused here or harmless.

    Python's filters belong to the process, so enter this once, around all threads that decode. It is also a decorator.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def open_image(data: bytes) -> Image.Image:
    """Read an image's header. Raises BrokenImageError for other content and for too many pixels."""
    if not data:
        raise BrokenImageError("it is empty")
    with one_line_causes():
        image: Image.Image = Image.open(io.BytesIO(data), formats=tuple(PLUGINS))
        if image.width * image.height > MAX_PIXELS:
            raise BrokenImageError(f"{image.width} x {image.height} are more than {MAX_PIXELS:,} pixels")
        return image


def decode_image(file: IO[bytes] | Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Decode an image file to (channels, size, size) uint8; see ``to_pixels``. Raises BrokenImageError."""
    with one_line_causes():
        data = file.read_bytes() if isinstance(file, Path) else file.read()
    return to_pixels(open_image(data), size, channels)


def to_pixels(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """The pixels of an opened image, (channels, size, size) uint8, grey (1 channel) or RGB (3 channels).

    The image is turned upright as its EXIF data say, transparent parts become white, 16-bit values are divided by 257.
    An image of another size is cropped to its central square and resized. Raises BrokenImageError.
    """
    with one_line_causes():
        image = upright(image).convert("L" if channels == 1 else "RGB")
        if image.size != (size, size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            method = Image.Resampling.BOX if side >= 2 * size else Image.Resampling.BICUBIC
            image = image.resize((size, size), method, box)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation: 1 is upright; 5 to 8 exchange width and height."""
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def upright(image: Image.Image) -> Image.Image:
    """The first frame, upright, with 8 bits a channel and without transparency; the mode may be any that converts."""
    if image.mode == "F":
        raise BrokenImageError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;"):
        return _from_16_bits(image)
    return _on_white(image) if image.has_transparency_data else image


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise BrokenImageError(f"its values are {values.min()} to {values.max()}, beyond 16 bits")
    if isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = 65_535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
