"""Reading committed shards. Errors name the damaged shard and key."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarefy.errors import ShardError
from rarefy.shards.metadata import tar_path
from rarefy.shards.store import Store

FIELDS = frozenset({"png", "cls", "json"})
BLOCK = 512  # of a tar
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 1 << 26  # of one image; a damaged file may claim any size


class _TarError(ValueError):
    """Not a tar that rarefy wrote."""


@dataclass(frozen=True)
class ReadSample:
    """image: (C, H, W) uint8; info: the content of the sample's ``.json``."""

    key: str
    image: NDArray[np.uint8]
    class_id: int
    info: dict[str, Any]


def read_samples(store: Store, name: str) -> Iterator[ReadSample]:
    """The samples of shard ``name``, in order. Raises ShardError, which names shard and key, on damage."""
    if not store.exists(tar_path(name)):
        raise ShardError(f"{name}: {tar_path(name)} is missing")
    with store.local_copy(tar_path(name)) as path:
        for key, fields in iter_tar(path, name):
            try:
                yield ReadSample(key, decode_image(fields["png"]), int(fields["cls"]), json_object(fields["json"]))
            except (OSError, ValueError) as cause:
                raise ShardError(f"{name}: sample {key} cannot be read ({' '.join(str(cause).split())})") from cause


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a PNG file to (C, H, W) uint8. C is 1 for a grey image, otherwise 3.

    Raises ValueError or OSError for a damaged file, and for one that claims more than MAX_PIXELS.
    """
    width, height = struct.unpack_from(">II", data, 16) if data[:8] == PNG_SIGNATURE and len(data) >= 24 else (0, 0)
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are not a PNG file of at most {MAX_PIXELS:,}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"), dtype=np.uint8)
    except (SyntaxError, struct.error, zlib.error, LookupError, EOFError, Image.DecompressionBombError) as cause:
        raise ValueError(f"a damaged PNG file: {cause}") from cause
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for anything else, also if it is nested too deeply to be read."""
    try:
        table = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(table, dict):
        raise ValueError("not an object")
    return table


def iter_tar(path: Path, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, file contents by extension) per sample. Raises ShardError, which names shard and last intact key."""
    with _open(path, name) as stream:
        yield from tar_samples(stream, name)


def iter_places(path: Path, name: str) -> Iterator[tuple[str, int, int]]:
    """Yields (key, first byte, size in bytes) of each sample's PNG file, without reading it. Raises ShardError."""
    last = "none"
    with _open(path, name) as stream:
        try:
            for member, start, size in _headers(stream):
                key, _, extension = member.partition(".")
                if extension == "png":
                    yield key, start, size
                    last = key
        except (_TarError, OSError) as cause:
            raise _damaged(name, last, cause) from cause


def tar_samples(stream: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """As ``iter_tar``, from an open file that can be sought."""
    last = "none"
    try:
        for key, fields in _groups(stream):
            if set(fields) != FIELDS:
                raise ShardError(f"{name}: sample {key} has the fields {sorted(fields)}, not {sorted(FIELDS)}")
            yield key, fields
            last = key
    except (_TarError, OSError) as cause:
        raise _damaged(name, last, cause) from cause


def _open(path: Path, name: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as cause:
        raise ShardError(f"{name}: tar cannot be opened ({cause.strerror})") from cause


def _damaged(name: str, last: str, cause: Exception) -> ShardError:
    return ShardError(f"{name}: tar is truncated or damaged after sample {last} ({cause})")


def _groups(stream: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, fields = "", dict[str, bytes]()
    for member, data in _members(stream):
        member_key, _, extension = member.partition(".")
        if fields and (member_key != key or extension in fields):
            yield key, fields
            fields = {}
        key, fields[extension] = member_key, data
        if fields.keys() == FIELDS:
            yield key, fields
            fields = {}
    if fields:
        yield key, fields


def _members(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar's files."""
    for member, start, size in _headers(stream):
        stream.seek(start)
        yield member, stream.read(size)


def _headers(stream: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Names, first bytes and sizes of a tar's files.

    Only what ``write_tar`` writes is accepted: plain files with short names. Python's tarfile also follows extensions
    and compression, by which a few bytes can claim any amount of memory.
    """
    left, start = stream.seek(0, io.SEEK_END), 0
    while (header := _block(stream, start)) != bytes(BLOCK):
        member, size = _parse_header(header)
        padded = -(-size // BLOCK) * BLOCK
        left -= BLOCK + padded
        if left < 0:
            raise _TarError(f"{member} has {size:,} bytes, more than the file has left")
        yield member, start + BLOCK, size
        start += BLOCK + padded
    if _block(stream, start + BLOCK) != bytes(BLOCK):
        raise _TarError("no end of archive")


def _block(stream: BinaryIO, start: int) -> bytes:
    stream.seek(start)
    return stream.read(BLOCK)


def _parse_header(header: bytes) -> tuple[str, int]:
    """Name and size in bytes of a file. The fields' places are those of POSIX ustar."""
    if len(header) < BLOCK:
        raise _TarError("no end of archive")
    checksum, size = header[148:156].strip(b"\0 "), header[124:136].strip(b"\0 ")
    try:
        right = int(checksum, 8) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if not (right and size.isdigit() and header[257:262] == b"ustar" and header[156:157] in (b"0", b"\0")):
            raise ValueError
        return header[:100].split(b"\0", 1)[0].decode("ascii"), int(size, 8)
    except ValueError:
        raise _TarError("not the header of a plain file") from None
