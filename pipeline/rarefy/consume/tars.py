"""Random access to the images in a data set's tars."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarefy.errors import OutputError, ShardError
from rarefy.shards.exclusions import KEY
from rarefy.shards.marker import hash_file, read_marker
from rarefy.shards.metadata import tar_path
from rarefy.shards.reader import iter_places
from rarefy.shards.store import Store
from rarefy.user_cache import keep, locked, user_cache

CACHE = "shards"  # in the user's cache folder


@dataclass(frozen=True)
class _Tar:
    """A local tar. keys: sorted, as numbers; starts, sizes: of each PNG file in bytes."""

    path: Path
    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]


class TarImages:
    """Reads single PNG files from the tars of a data set.

    A tar's members are located once per process, without reading the images, and kept in memory: 24 bytes per image. A
    local tar is read in place. Of a tar in an object store, the whole file is copied to the user's cache folder first,
    once per machine. Copies stay there for other epochs and processes and are named by their hash.
    """

    def __init__(self, data: Store) -> None:
        self.data = data
        self._tars: dict[str, _Tar] = {}

    def __reduce__(self) -> tuple[type[TarImages], tuple[Store]]:
        return TarImages, (self.data,)

    def read(self, name: str, key: str) -> bytes:
        """The PNG file of a sample of shard ``name``. Raises ShardError, which names shard and key, on damage."""
        if name not in self._tars:
            self._tars[name] = self._open(name)
        tar = self._tars[name]
        place = int(np.searchsorted(tar.keys, int(key)))
        if place == len(tar.keys) or tar.keys[place] != int(key):
            raise ShardError(f"{name}: sample {key} is not in {tar_path(name)}")
        try:
            with tar.path.open("rb") as stream:
                stream.seek(int(tar.starts[place]))
                return stream.read(int(tar.sizes[place]))
        except OSError as cause:
            raise ShardError(f"{name}: sample {key} cannot be read ({cause.strerror})") from cause

    def _open(self, name: str) -> _Tar:
        path, found = self._local(name), list[tuple[int, int, int]]()
        for key, start, size in iter_places(path, name):
            if not KEY.fullmatch(key):
                raise ShardError(f"{name}: {key!r} is not a sample's key")
            found.append((int(key), start, size))
        return _Tar(path, *np.array(sorted(found), np.int64).reshape(-1, 3).T.copy())

    def _local(self, name: str) -> Path:
        """The tar, or the machine's copy of it."""
        if self.data.is_local:
            return Path(self.data.path) / tar_path(name)
        marker = read_marker(self.data, name)
        if marker is None:
            raise ShardError(f"{name}: it has no marker any more")
        path = user_cache() / CACHE / f"{marker.tar_sha256}.tar"
        if path.exists():
            return path
        try:
            with locked(path.with_suffix(".lock")):
                if not path.exists():  # another process may just have copied it
                    self._copy(name, marker.tar_sha256, path)
        except OSError as cause:
            advice = "make room, or set XDG_CACHE_HOME to another folder"
            reason = cause.strerror or cause
            raise OutputError(f"cache: {str(path)!r} cannot be written ({reason}); {advice}") from cause
        return path

    def _copy(self, name: str, sha256: str, path: Path) -> None:
        with self.data.local_copy(tar_path(name)) as download:
            if hash_file(download).sha256 != sha256:
                raise ShardError(f"{name}: {tar_path(name)} does not have the sha256 that its marker says")
            with download.open("rb") as source:
                keep(path, lambda target: shutil.copyfileobj(source, target))
