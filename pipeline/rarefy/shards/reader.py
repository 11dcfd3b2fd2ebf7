"""Reading committed shards. Errors name the damaged shard and key."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarefy.errors import ShardError
from rarefy.shards.metadata import tar_path
from rarefy.shards.store import Store

FIELDS = frozenset({"png", "cls", "json"})
TAR_END = bytes(1024)


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
                yield ReadSample(key, decode_image(fields["png"]), int(fields["cls"]), json.loads(fields["json"]))
            except (OSError, ValueError, SyntaxError) as cause:
                raise ShardError(f"{name}: sample {key} cannot be read ({' '.join(str(cause).split())})") from cause


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file to (C, H, W) uint8. C is 1 for a grey image, otherwise 3."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"), dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def iter_tar(path: Path, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, file contents by extension) per sample. Raises ShardError, which names shard and last intact key."""
    last = "none"
    try:
        with tarfile.open(path) as tar:
            for key, fields in _groups(tar):
                if set(fields) != FIELDS:
                    raise ShardError(f"{name}: sample {key} has the fields {sorted(fields)}, not {sorted(FIELDS)}")
                yield key, fields
                last = key
        _check_end(path)
    except (tarfile.TarError, OSError, EOFError) as cause:
        raise ShardError(f"{name}: tar is truncated or damaged after sample {last} ({cause})") from cause


def _groups(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, fields = "", dict[str, bytes]()
    for member in tar:
        member_key, _, extension = member.name.partition(".")
        if member_key != key and fields:
            yield key, fields
            fields = {}
        key = member_key
        stream = tar.extractfile(member)
        fields[extension] = stream.read() if stream else b""
    if fields:
        yield key, fields


def _check_end(path: Path) -> None:
    """Check the end-of-archive blocks, because tarfile accepts a file that was cut between two members."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - len(TAR_END)))
        if stream.read() != TAR_END:
            raise tarfile.ReadError("no end of archive")
