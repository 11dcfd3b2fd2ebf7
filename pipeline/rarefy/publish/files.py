"""The files of a push: where their bytes are, and whether the Hub has them already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rarefy.shards.store import Store

BLOCK_BYTES = 1 << 20


class RemoteFile(Protocol):
    """What the Hub says about a file. sha256: of a large file's content; blob_id: git's hash of a small one."""

    @property
    def sha256(self) -> str | None: ...

    @property
    def blob_id(self) -> str: ...


@dataclass(frozen=True)
class PushFile:
    """One file to send.

    path: in the repository; source: a store and a path in it, or the bytes themselves; sha256: if it is known without
    reading the file, as a shard's is from its marker.
    """

    path: str
    size_bytes: int
    source: tuple[Store, str] | bytes
    sha256: str | None = None

    @contextmanager
    def content(self) -> Iterator[Path | bytes]:
        """A local file or the bytes; for the duration of the block."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        store, rel = self.source
        with store.local_copy(rel) as path:
            yield path

    def is_same(self, remote: RemoteFile | None) -> bool:
        """Whether the Hub has this file with the same content."""
        if remote is None:
            return False
        if remote.sha256 is not None:
            return remote.sha256 == (self.sha256 or self._hash("sha256"))
        return remote.blob_id == self._hash("sha1", f"blob {self.size_bytes}\0".encode())

    def _hash(self, name: str, prefix: bytes = b"") -> str:
        digest = hashlib.new(name, prefix, usedforsecurity=False)
        with self.content() as content:
            for block in [content] if isinstance(content, bytes) else _blocks(content):
                digest.update(block)
        return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def walk(store: Store, folder: str = "") -> Iterator[str]:
    """Paths of all files below a folder, without hidden files and folders."""
    files = set(store.files(folder))
    for name in store.list(folder):
        path = f"{folder}/{name}" if folder else name
        if name in files:
            yield path
        else:
            yield from walk(store, path)


def stored(store: Store, rel: str, path: str | None = None, sha256: str | None = None) -> PushFile:
    """A file of a store. path: in the repository, if it is another."""
    return PushFile(path or rel, store.size(rel), (store, rel), sha256)


def made(path: str, content: bytes) -> PushFile:
    """A file whose content is made for the push."""
    return PushFile(path, len(content), content)
