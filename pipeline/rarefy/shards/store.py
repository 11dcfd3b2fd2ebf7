"""A run's output folder: a local path or any fsspec URL. Files are written completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rarefy.errors import OutputError, bad

# Inside the class, Store.list hides the builtin list.
Names = list[str]
# Besides OSError, drivers of object stores raise these for missing credentials or connections.
DRIVER_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
PRIVATE_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class Store:
    """Files under one root; ``rel`` paths use ``/``. A file gets its name only when it is complete.

    On a local root it is written under a private name in the same folder, synced and renamed; on an object store it is
    uploaded in one call. Every failing call raises OutputError. Safe to pickle and to use from several threads.
    """

    def __init__(self, root: str) -> None:
        try:
            # Other machines write here too; a cached listing would hide their markers.
            self.fs, self.path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ValueError, ImportError) as cause:
            raise OutputError(bad("out", root, f"a local path or a usable fsspec URL ({one_line(cause)})")) from cause
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.root = self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))

    def exists(self, rel: str) -> bool:
        with self._reporting(rel, "readable"):
            return bool(self.fs.exists(self._full(rel)))

    def list(self, folder: str = "") -> Names:
        """Sorted names of files and folders in ``folder``, without hidden ones; [] if it does not exist."""
        return [name for name in self._names(folder) if not name.startswith(".")]

    def size(self, rel: str) -> int:
        """Size in bytes."""
        with self._reporting(rel, "readable"):
            return int(self.fs.size(self._full(rel)))

    def read_bytes(self, rel: str) -> bytes:
        with self._reporting(rel, "readable"):
            return bytes(self.fs.cat_file(self._full(rel)))

    @contextmanager
    def local_copy(self, rel: str) -> Iterator[Path]:
        """A local path of the file for the duration of the block: the file itself, or a temporary download."""
        if self.is_local:
            yield Path(self._full(rel))
            return
        with tempfile.TemporaryDirectory(prefix="rarefy-") as folder:
            target = Path(folder) / Path(rel).name
            with self._reporting(rel, "readable"):
                self.fs.get_file(self._full(rel), str(target))
            yield target

    @contextmanager
    def staged(self, rel: str) -> Iterator[Path]:
        """A private local path to write to. The file is put in place when the block succeeds, otherwise removed."""
        with self._reporting(rel, "writable"):
            if self.is_local:
                with self._staged_locally(Path(self._full(rel))) as private:
                    yield private
                return
            with tempfile.TemporaryDirectory(prefix="rarefy-") as folder:
                private = Path(folder) / Path(rel).name
                yield private
                self.fs.put_file(str(private), self._full(rel))

    def write_bytes(self, rel: str, data: bytes) -> None:
        with self._reporting(rel, "writable"):
            self._put(rel, data)

    def delete(self, rel: str) -> None:
        """Delete a file if it exists."""
        with self._reporting(rel, "writable"), suppress(FileNotFoundError):
            self.fs.rm_file(self._full(rel))

    def check_writable(self, need_bytes: int = 0) -> None:
        """Write and delete a test file; on a local root, also require ``need_bytes`` of free space."""
        probe = f".probe.{uuid.uuid4().hex}.tmp"
        with self._reporting("", "writable"):
            self._put(probe, bytes(4096))
            self.fs.rm_file(self._full(probe))
        free = shutil.disk_usage(self.path).free if self.is_local else need_bytes
        if free < need_bytes:
            raise OutputError(bad("out", self.root, f"a place with {need_bytes:,} bytes free (it has {free:,})"))

    def sweep(self, folder: str) -> int:
        """Delete the private files that dead attempts left in ``folder`` and return their number."""
        leftovers = [name for name in self._names(folder) if PRIVATE_NAME.fullmatch(name)]
        for name in leftovers:
            self.delete(f"{folder}/{name}" if folder else name)
        return len(leftovers)

    def _put(self, rel: str, data: bytes) -> None:
        if self.is_local:
            with self._staged_locally(Path(self._full(rel))) as private:
                private.write_bytes(data)
        else:
            self.fs.pipe_file(self._full(rel), data)

    def _names(self, folder: str) -> Names:
        full = self._full(folder).rstrip("/")
        with self._reporting(folder, "readable"):
            try:
                paths = self.fs.ls(full, detail=False)
            except FileNotFoundError:
                return []
        # Object stores may list a placeholder for the folder itself.
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths if path.rstrip("/") != full)

    def _full(self, rel: str) -> str:
        return f"{self.path.rstrip('/')}/{rel}" if rel else str(self.path)

    @contextmanager
    def _staged_locally(self, target: Path) -> Iterator[Path]:
        target.parent.mkdir(parents=True, exist_ok=True)
        private = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            yield private
            _fsync(private)
            private.replace(target)
            _fsync(target.parent)
        finally:
            private.unlink(missing_ok=True)

    @contextmanager
    def _reporting(self, rel: str, allowed: str) -> Iterator[None]:
        try:
            yield
        except driver_errors() as cause:
            place = f"{self.root}/{rel}" if rel else self.root
            raise OutputError(bad("out", place, f"{allowed} ({one_line(cause)})")) from cause


def driver_errors() -> tuple[type[Exception], ...]:
    """OSError and the exceptions of all drivers that are loaded."""
    loaded = [(sys.modules[module], name) for module, name in DRIVER_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, name in loaded))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(cause: Exception) -> str:
    """What went wrong, without the path, which the caller names."""
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    # The text of a driver's FileNotFoundError is only the path.
    reason = "no such file or bucket" if isinstance(cause, FileNotFoundError) else str(cause)
    return " ".join(reason.split()) or type(cause).__name__
