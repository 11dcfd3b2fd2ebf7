"""WebDataset shards: ``.tar`` files whose members KEY.png, KEY.cls and KEY.json belong together.

Only tarfile opens them, by path, so that no name can start a program (webdataset would run ``pipe:...``).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from PIL import Image

from rarefy.errors import DataError, bad
from rarefy.images.decode import IMAGE_SUFFIXES, one_line_causes, open_image
from rarefy.images.folders import HIDDEN, is_hidden
from rarefy.images.items import Found, Skipped, Source, make_source
from rarefy.images.names import is_printable

BLOCK = 512
MAX_DIGITS = 5  # of a class id
MAX_LABEL_BYTES = 1 << 20
KEY_AND_FIELD = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
MAX_NAME = 200
IMAGE_FIELDS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
LABEL_FIELDS = frozenset({"cls", "json"})
OTHER_FIELDS = "members other than images, .cls and .json"
NOT_FILES = "members that are not plain files"


@dataclass(frozen=True, slots=True)
class TarPlace:
    """An image within a tar."""

    file: str
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file} {self.member}"

    def open(self) -> Image.Image:
        """See Place."""
        with one_line_causes(), Path(self.file).open("rb") as stream:
            stream.seek(self.offset)
            data = stream.read(self.size)
        return open_image(data)


@dataclass
class _Sample:
    """What a tar has of one key: an image, and the members that name its class."""

    image: TarPlace | None = None
    labels: dict[str, bytes] = field(default_factory=dict)


def read_shards(root: Path, tars: Sequence[Path], skipped: Skipped) -> Source:
    """List the images of all tars, in order. Keys that several tars use are made unique by the name of the tar."""
    found = [(tar.stem, image) for tar in tars for image in _shard(tar, skipped)]
    if not found:
        seen = "".join(f"; {reason}: {', '.join(tally.first)}" for reason, tally in skipped.items())
        raise DataError(bad("data", str(root), f"a folder of shards with at least one KEY.png (or .jpg, ...){seen}"))
    if len({image.key for _, image in found}) < len(found):
        found = [(stem, replace(image, key=f"{stem}/{image.key}")) for stem, image in found]
    return make_source(root, "WebDataset shards", (image for _, image in found), skipped)


def _shard(path: Path, skipped: Skipped) -> Iterator[Found]:
    samples: dict[str, _Sample] = {}
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                _sort_member(path, tar, member, samples, skipped)
            _check_end(path, stream, tar)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _damaged(path, list(samples), str(error)) from None
    for key, sample in samples.items():
        where = f"sample {key!r} of {path}"
        if sample.image is None:
            raise DataError(f"data: {where} has no image")
        yield Found(key, _class_name(where, sample.labels), sample.image)


def _sort_member(
    path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Sample], skipped: Skipped
) -> None:
    """Add a member to its sample, or count it as skipped."""
    name = member.name
    if not is_printable(name):
        raise DataError(f"data: {path} has a member whose name cannot be printed: {name!a}")
    parts = KEY_AND_FIELD.fullmatch(name)
    kind = parts[2].lower() if parts else ""
    if member.isdir():
        return
    if any(is_hidden(part) for part in name.removeprefix("./").split("/")):
        skipped[HIDDEN].add(f"{path.name} {name}")
    elif not member.isreg() or member.issparse():
        skipped[NOT_FILES].add(f"{path.name} {name}")
    elif parts is None or kind not in IMAGE_FIELDS | LABEL_FIELDS:
        skipped[OTHER_FIELDS].add(f"{path.name} {name}")
    else:
        sample = samples.setdefault(parts[1], _Sample())
        if kind in sample.labels or (kind in IMAGE_FIELDS and sample.image):
            raise DataError(f"data: sample {parts[1]!r} of {path} has two images or two .{kind} members")
        if kind in IMAGE_FIELDS:
            sample.image = TarPlace(str(path), name, member.offset_data, member.size)
        else:
            sample.labels[kind] = _content(path, tar, member)


def _content(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    if stream is None or member.size > MAX_LABEL_BYTES:
        raise DataError(f"data: {path} {member.name} has {member.size:,} bytes, more than {MAX_LABEL_BYTES:,}")
    return stream.read()


def _check_end(path: Path, stream: IO[bytes], tar: tarfile.TarFile) -> None:
    """A whole tar ends with blocks of zeros. tarfile itself takes any end between two members for the end."""
    last = tar.getmembers()[-1] if tar.getmembers() else None
    stream.seek(0 if last is None else last.offset_data + -(-last.size // BLOCK) * BLOCK)
    name = "its beginning" if last is None else last.name
    rest = stream.read(BLOCK)
    if len(rest) < BLOCK:
        raise tarfile.ReadError(f"it ends after {name} without the blocks that mark a tar's end")
    while rest:
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"there are other bytes after {name}; is it two tars in one file?")
        rest = stream.read(1 << 20)


def _damaged(path: Path, keys: Sequence[str], cause: str) -> DataError:
    after = f" after {keys[-1]}" if keys else ""
    return DataError(f"data: {path} is truncated or damaged{after} ({' '.join(cause.split())})")


def _class_name(where: str, labels: dict[str, bytes]) -> str:
    """``class_name`` of the .json if there is one, else the text or the number in the .cls."""
    name = _json_name(where, labels["json"]) if "json" in labels else None
    if name is None and "cls" not in labels:
        raise DataError(f"data: {where} has no .cls and no .json with a class_name")
    try:
        text = (labels["cls"].decode() if name is None else name).strip()
    except UnicodeDecodeError:
        raise DataError(f"data: .cls of {where} is neither a number nor text in UTF-8") from None
    return check_label(text, f"{where}: label")


def check_label(text: str, field: str) -> str:
    """A class name, or a class id as a plain number. Raises DataError."""
    if number := re.fullmatch(r"(-?)\+?0*([0-9]+)", text):
        if number[1] or len(number[2]) > MAX_DIGITS:
            raise DataError(f"data: {bad(field, text[:MAX_NAME], f'a class id from 0 to {10**MAX_DIGITS - 1:,}')}")
        return number[2]
    if not text or not is_printable(text) or len(text) > MAX_NAME:
        raise DataError(f"data: {bad(field, text[:MAX_NAME], f'a class id or a name of 1 to {MAX_NAME} characters')}")
    return text


def _json_name(where: str, content: bytes) -> str | None:
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: .json of {where} cannot be read ({error})") from None
    name = table.get("class_name") if isinstance(table, dict) else None
    if name is not None and not isinstance(name, str):
        raise DataError(f"data: {bad(f'{where}: class_name', name, 'text')}")
    return name
