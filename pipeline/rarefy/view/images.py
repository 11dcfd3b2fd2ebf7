"""Single images of a data set, read from their place in the tar."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rarefy.errors import ShardError
from rarefy.scratch import scratch_folder
from rarefy.shards.reader import PNG_SIGNATURE, iter_places
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
    """The PNG files of the data set in ``data``. Safe to use from several threads. Use ``close`` at the end.

    A local tar is read at the image's place. Of an object store each shard is downloaded when its first image is asked
    for; the shards that were used last are kept in a temporary folder of at most MOST_BYTES.
    """

    def __init__(self, data: Store) -> None:
        self._data = data
        self._shards: OrderedDict[str, _Shard] = OrderedDict()
        self._lock, self._stack = threading.Lock(), ExitStack()

    def close(self) -> None:
        """Remove the temporary folder."""
        self._stack.close()

    def png(self, tar: str, key: str) -> bytes:
        """The image's file. tar: path of its shard. Raises ShardError if it is not there or damaged, OutputError."""
        with self._lock:
            shard = self._shard(tar)
            if key not in shard.places:
                raise ShardError(f"{tar}: no image {key}")
            data = _read(shard.path, *shard.places[key])
            if not data.startswith(PNG_SIGNATURE):
                del self._shards[tar]  # the shard was deleted or written again; its places are read anew next time
                raise ShardError(f"{tar}: there is no PNG at the place of image {key}; try again, or run rarefy verify")
            return data

    def _shard(self, tar: str) -> _Shard:
        shard = self._shards.get(tar) or self._open(tar)
        self._shards[tar] = shard
        self._shards.move_to_end(tar)
        while len(self._shards) > MOST_OPEN or (len(self._shards) > 1 and self._downloaded() > MOST_BYTES):
            _, oldest = self._shards.popitem(last=False)
            if oldest.downloaded_bytes:
                oldest.path.unlink(missing_ok=True)
        return shard

    def _downloaded(self) -> int:
        return sum(shard.downloaded_bytes for shard in self._shards.values())

    def _open(self, tar: str) -> _Shard:
        if not self._data.exists(tar):
            raise ShardError(f"{tar}: missing; run rarefy verify")
        with self._data.local_copy(tar) as path:
            size = 0
            if not self._data.is_local:
                size, path = path.stat().st_size, path.rename(self._folder / path.name)
            places = {key: (start, length) for key, start, length in iter_places(path, path.stem)}
            return _Shard(path, places, size)

    @cached_property
    def _folder(self) -> Path:
        return self._stack.enter_context(scratch_folder())


def _read(path: Path, start: int, size: int) -> bytes:
    """A part of a file; nothing if the file is gone."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)
    return b""
