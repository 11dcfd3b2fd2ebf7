"""Single images of a data set, read from their place in the tar."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rarefy.errors import ShardError
from rarefy.manifest import Manifest
from rarefy.plan import data_names, shard_name
from rarefy.scratch import scratch_folder
from rarefy.shards.listing import committed_numbers
from rarefy.shards.metadata import parquet_path, read_table, tar_path
from rarefy.shards.reader import PNG_SIGNATURE, image_places
from rarefy.shards.store import Store

MOST_OPEN = 256  # shards whose places are kept in memory
MOST_BYTES = 2 << 30  # of downloaded shards


@dataclass(frozen=True)
class _Shard:
    """A tar on this machine, and the place and length of each key's PNG."""

    path: Path
    places: dict[str, tuple[int, int]]
    downloaded_bytes: int


class Images:
    """The PNG files of the data set in ``data``, by key. Safe to use from several threads; use as a context manager.

    A local tar is read at the image's place. Of an object store each shard is downloaded when its first image is asked
    for; the shards that were used last are kept in a temporary folder of at most MOST_BYTES.
    """

    def __init__(self, data: Store, manifest: Manifest) -> None:
        self._data, self._manifest = data, manifest
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._lock, self._stack = threading.Lock(), ExitStack()

    def __enter__(self) -> Images:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def png(self, key: str) -> bytes:
        """The image's file. Raises ShardError if it is not there or damaged, OutputError and StorageError."""
        name = self.shard_of(key)
        with self._lock:
            shard = self._shard(name)
            if key not in shard.places:
                raise ShardError(f"{name}: no image {key}")
            start, size = shard.places[key]
            with shard.path.open("rb") as stream:
                stream.seek(start)
                data = stream.read(size)
            if not data.startswith(PNG_SIGNATURE):
                del self._shards[name]  # the shard was written again; its places are read anew next time
                raise ShardError(f"{name}: the file of image {key} is not a PNG; try again, or run rarefy verify")
            return data

    def shard_of(self, key: str) -> str:
        """Name of the shard that has the image. Raises ShardError."""
        if self._manifest.select is not None:
            if (name := self._selected.get(key)) is None:
                raise ShardError(f"key: {key!r} is not in the data set")
            return name
        if not (key.isascii() and key.isdigit() and len(key) == 11):
            raise ShardError(f"key: {key!r} is not a sample key of 11 digits")
        return shard_name(self._manifest.prefix, int(key[:6]))

    @cached_property
    def _selected(self) -> dict[str, str]:
        """The shard of each chosen image, whose key is that of the shard it was sampled in."""
        found: dict[str, str] = {}
        committed = committed_numbers(self._data, self._manifest.prefix)
        for number, name in enumerate(data_names(self._manifest)):
            if number in committed:
                with self._data.local_copy(parquet_path(name)) as path:
                    found |= dict.fromkeys(read_table(path)["key"].to_pylist(), name)
        return found

    def _shard(self, name: str) -> _Shard:
        shard = self._shards.get(name) or self._open(name)
        self._shards[name] = shard
        self._shards.move_to_end(name)
        while len(self._shards) > MOST_OPEN or (len(self._shards) > 1 and self._downloaded() > MOST_BYTES):
            _, oldest = self._shards.popitem(last=False)
            if oldest.downloaded_bytes:
                oldest.path.unlink(missing_ok=True)
        return shard

    def _downloaded(self) -> int:
        return sum(shard.downloaded_bytes for shard in self._shards.values())

    def _open(self, name: str) -> _Shard:
        rel = tar_path(name)
        if not self._data.exists(rel):
            raise ShardError(f"{name}: {rel} is missing")
        with self._data.local_copy(rel) as path:
            size = 0
            if not self._data.is_local:
                size, path = path.stat().st_size, path.rename(self._folder / f"{name}.tar")
            with path.open("rb") as stream:
                return _Shard(path, image_places(stream, name), size)

    @cached_property
    def _folder(self) -> Path:
        return self._stack.enter_context(scratch_folder())
