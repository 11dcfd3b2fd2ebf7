"""Files of every kind decode to the right pixels, or to one line that says why not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted_images import encode, noise

from rarefy.images.decode import BrokenImageError, decode_image, quiet_decoders

RGB = noise(0, 8, 8, 3)
GREY = noise(1, 8, 8)


def decode(data: bytes, size: int = 8, channels: int = 3) -> np.ndarray:
    """(size, size, channels) pixels."""
    with quiet_decoders():
        return decode_image(io.BytesIO(data), size, channels).transpose(1, 2, 0)


def before(data: bytes, size: int, channels: int) -> np.ndarray:
    """What rarefy made of an upright, opaque image of 8 bits when it had no other rules."""
    image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        method = Image.Resampling.BOX if side >= 2 * size else Image.Resampling.BICUBIC
        image = image.resize((size, size), method, (left, top, left + side, top + side))
    return np.asarray(image).reshape(size, size, channels)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8), (20, 13, 3), (7, 30), (5, 5, 3)])
def test_plain_files_keep_their_bytes(form: str, channels: int, shape: tuple[int, ...]) -> None:
    data = encode(noise(2, *shape), form)
    assert np.array_equal(decode(data, 8, channels), before(data, 8, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_palette_without_transparency_keeps_its_bytes(channels: int) -> None:
    data = encode(Image.fromarray(RGB).quantize(16))
    assert np.array_equal(decode(data, 8, channels), before(data, 8, channels))


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_exif_turns_an_image_upright(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(RGB, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(decode(data), UPRIGHT[orientation](RGB))


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_composited_over_white(channels: int) -> None:
    alpha = noise(3, 8, 8)
    data = encode(Image.fromarray(np.dstack([RGB, alpha])))
    opacity = alpha[..., None] / 255
    expected = RGB * opacity + 255 * (1 - opacity)
    if channels == 1:
        expected = expected @ np.array([[0.299], [0.587], [0.114]])
    assert np.abs(decode(data, 8, channels) - expected).max() <= 1.01
    grey = encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]))
    over_white = GREY * opacity[..., 0] + 255 * (1 - opacity[..., 0])
    assert np.abs(decode(grey, 8, 1)[..., 0] - over_white).max() <= 1.01


def test_a_transparent_colour_becomes_white() -> None:
    paletted = Image.fromarray(RGB).quantize(4)
    expected = np.asarray(paletted.convert("RGB")).copy()
    expected[np.asarray(paletted) == 2] = 255
    assert np.array_equal(decode(encode(paletted, transparency=2)), expected)
    expected = np.where(GREY[3, 3] == GREY, 255, GREY)
    assert np.array_equal(decode(encode(GREY, transparency=int(GREY[3, 3])), 8, 1)[..., 0], expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(form: str) -> None:
    values = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.round(values / 65_535 * 255)
    assert np.array_equal(decode(encode(values, form), 8, 1)[..., 0], expected)
    assert np.array_equal(decode(encode(values, form))[..., 2], expected)


def test_32_bit_integers_are_16_bit_values_or_refused() -> None:
    values = np.linspace(0, 65_535, 64).astype(np.int32).reshape(8, 8)
    assert np.array_equal(decode(encode(values, "TIFF"), 8, 1)[..., 0], np.round(values / 257))
    with pytest.raises(BrokenImageError, match="0 to 131070, beyond 16 bits"):
        decode(encode(values * 2, "TIFF"))


def test_a_16_bit_png_with_a_transparent_value() -> None:
    values = (np.arange(64).reshape(8, 8) * 1000).astype(">u2")
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", 5000)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(packed)
    expected = np.where(values == 5000, 255, np.round(values / 257))
    assert np.array_equal(decode(data, 8, 1)[..., 0], expected)


def test_cmyk_becomes_rgb() -> None:
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[:4, :, 0], ink[4:, :, 3] = 255, 255  # cyan above, black below
    pixels = decode(encode(Image.fromarray(ink, "CMYK"), "TIFF"))
    assert (pixels[:4] == [0, 255, 255]).all() and (pixels[4:] == 0).all()
    jpeg = decode(encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)).astype(int)
    assert np.abs(jpeg - pixels).max() < 12


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(data) == [255, 0, 0]).all()


def test_floating_point_and_other_formats_are_refused() -> None:
    with pytest.raises(BrokenImageError, match="floating-point"):
        decode(encode(np.zeros((8, 8), np.float32), "TIFF"))
    with pytest.raises(BrokenImageError, match="is none of PNG, JPEG"):
        decode(encode(RGB, "EPS"))  # Pillow would start Ghostscript
    with pytest.raises(BrokenImageError, match="it is empty"):
        decode(b"")


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first and refuses the second
def test_decompression_bombs_are_refused_unread(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 4) + b"IDAT" + bytes(8)
    with pytest.raises(BrokenImageError, match="more than 89,478,485 pixels"):
        decode(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_truncated_and_damaged_files_are_one_line(form: str, tmp_path: Path) -> None:
    whole = encode(Image.fromarray(noise(4, 24, 24, 3)), form)
    with pytest.raises(BrokenImageError) as caught:
        decode(whole[: len(whole) // 2])
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    rng = np.random.default_rng(5)
    for _ in range(150):  # anything else that a decoder raises would fail here
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for position in rng.integers(0, len(damaged), 4):
            damaged[position] = rng.integers(256)
        try:
            assert decode(bytes(damaged)).shape == (8, 8, 3)
        except BrokenImageError as error:
            assert "\n" not in str(error)
