"""A run's output folder: a local path or any fsspec URL. Files are written completely or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rarefy.errors import OutputError, StorageError, bad
from rarefy.extras import missing_package
from rarefy.scratch import scratch_folder
from rarefy.shards.files import PRIVATE_NAME, Entry, Files, private_name
from rarefy.shards.local import LocalFiles
from rarefy.shards.remote import RemoteFiles
from rarefy.shards.retry import PATIENCE_S, Outlook, driver_errors, one_line, outlook, repeat

T = TypeVar("T")
# Inside the class, Store.list hides the builtin list.
Names = list[str]
READABLE, WRITABLE = "readable", "writable"
# A private file this old, by the store's clock, belongs to no attempt that still runs.
DEAD_S = 3600.0
log = logging.getLogger(__name__)


class Store:
    """Files under one root; ``rel`` paths use ``/``. A file gets its name only when it is complete.

    A call that fails for a reason that may pass (see rarefy.shards.retry) is repeated for ``patience_s`` seconds; then
    it raises StorageError. Any other failure raises OutputError at once. Safe to pickle and to use from several
    threads and in forked processes.
    """

    def __init__(self, root: str, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        try:
            # Other machines write here too; a cached listing would hide their markers.
            fs, self.path = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except (ValueError, ImportError) as cause:
            if (missing := missing_package(f"out: {root!r}", cause)) is not None:
                raise missing from cause
            raise OutputError(bad("out", root, f"a local path or a usable fsspec URL ({one_line(cause)})")) from cause
        self.is_local = isinstance(fs, LocalFileSystem)
        self.root = self.path if self.is_local else str(fs.unstrip_protocol(self.path))
        self._url = self.path if self.is_local else root
        self._files: Files = LocalFiles() if self.is_local else RemoteFiles(fs)
        self._pid = os.getpid()
        self._fresh = False  # whether the credentials were read for this store; fsspec keeps drivers from earlier ones
        self._worked: set[str] = set()

    def __reduce__(self) -> tuple[type[Store], tuple[str, float]]:
        return Store, (self._url, self.patience_s)

    @property
    def creates_atomically(self) -> bool:
        """Whether exactly one of several simultaneous ``create`` calls wins on this kind of storage."""
        return self._files.atomic

    def folder(self, rel: str) -> Store:
        """A store of a folder in this one."""
        return Store(f"{self._url.rstrip('/')}/{rel}", self.patience_s)

    def exists(self, rel: str) -> bool:
        return self._call(rel, READABLE, lambda: self._files.exists(self._full(rel)))

    def list(self, folder: str = "") -> Names:
        """Sorted names of files and folders in ``folder``, without hidden ones; [] if it does not exist."""
        return sorted(entry.name for entry in self._entries(folder) if not entry.name.startswith("."))

    def files(self, folder: str) -> Iterator[str]:
        """Names of the files in ``folder``, hidden ones too, in any order; none if it does not exist."""
        return (entry.name for entry in self._entries(folder) if entry.is_file)

    def size(self, rel: str) -> int:
        """Size in bytes."""
        return self._call(rel, READABLE, lambda: self._files.size(self._full(rel)))

    def size_or_none(self, rel: str) -> int | None:
        """Size in bytes, or None if there is no such file."""

        def ask() -> int | None:
            with suppress(FileNotFoundError, NotADirectoryError):
                return self._files.size(self._full(rel))
            return None

        return self._call(rel, READABLE, ask)

    def read_bytes(self, rel: str) -> bytes:
        return self._call(rel, READABLE, lambda: self._files.read(self._full(rel)))

    def read_or_none(self, rel: str) -> bytes | None:
        """The content, or None if there is no file of that name (a directory is none). One request."""
        return self._call(rel, READABLE, lambda: self._try_read(rel))

    @contextmanager
    def local_copy(self, rel: str) -> Iterator[Path]:
        """A local path of the file for the duration of the block: the file itself, or a temporary download."""
        if self.is_local:
            yield Path(self._full(rel))
            return
        with scratch_folder() as folder:
            target = folder / Path(rel).name
            self._call(rel, READABLE, lambda: self._files.download(self._full(rel), target))
            yield target

    @contextmanager
    def staged(self, rel: str) -> Iterator[Path]:
        """A private local path to write to. The file is put in place when the block succeeds, otherwise removed."""
        with self._scratch(rel) as private:
            start = time.monotonic()
            try:
                yield private
            except OSError as cause:
                raise self._error(cause, rel, WRITABLE, start) from cause
            self._call(rel, WRITABLE, lambda: self._files.put(self._full(rel), private))

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write a file, replacing an earlier one."""
        self._call(rel, WRITABLE, lambda: self._files.put(self._full(rel), data))

    def create(self, rel: str, data: bytes) -> bool:
        """Write a file unless there is one of that name. True: written now; False: there was one already.

        Of several simultaneous calls exactly one returns True (see LocalFiles and RemoteFiles for the exceptions).
        """
        answer_lost, token = False, uuid.uuid4().hex

        def attempt() -> bool:
            nonlocal answer_lost
            try:
                created = self._files.create(self._full(rel), data, token)
            except driver_errors():
                answer_lost = True
                raise
            # After an error, the file that is there may be the one of this call's earlier try.
            return created or (answer_lost and self._try_read(rel) == data)

        return self._call(rel, WRITABLE, attempt)

    def delete(self, rel: str) -> None:
        """Delete a file if it exists."""
        self._call(rel, WRITABLE, lambda: self._files.delete(self._full(rel)))

    def withdraw(self, rel: str, sha256: str) -> bool:
        """Delete a file if its content has this hash, so that what another writer has put there since stays.

        Returns whether there is no file of that name any more.
        """
        return self._call(rel, WRITABLE, lambda: self._files.withdraw(self._full(rel), sha256))

    def check_writable(self, need_bytes: int = 0) -> None:
        """Write and delete a test file; on a local root, also require ``need_bytes`` of free space."""
        probe = self._full(private_name("probe"))

        def write_and_delete() -> None:
            self._files.put(probe, bytes(4096))
            self._files.delete(probe)

        self._call("", WRITABLE, write_and_delete)
        free = shutil.disk_usage(self.path).free if self.is_local else need_bytes
        if free < need_bytes:
            raise OutputError(bad("out", self.root, f"a place with {need_bytes:,} bytes free (it has {free:,})"))

    def sweep(self, folder: str) -> int:
        """Delete the private files that dead attempts left in ``folder`` an hour ago or earlier; returns their number.

        Their age is measured by the store's own clock, because this machine's may differ from it.
        """
        private = [name for name in self.files(folder) if PRIVATE_NAME.fullmatch(name)]
        if not private:
            return 0
        now = self._now(folder)
        dead = [rel for rel in (_join(folder, name) for name in private) if now - self._modified(rel, now) > DEAD_S]
        for rel in dead:
            self.delete(rel)
        return len(dead)

    def seconds_ahead(self, rel: str) -> float:
        """How far the store's clock is ahead of this machine's, by a file that was written just now; 0 if unknown."""
        now = time.time()
        return self._modified(rel, now) - now

    def _now(self, folder: str) -> float:
        probe = _join(folder, private_name("probe"))
        self.write_bytes(probe, b"")
        try:
            return self._modified(probe, time.time())
        finally:
            self.delete(probe)

    def _modified(self, rel: str, otherwise: float) -> float:
        """Time of the last change, or ``otherwise`` if the file is gone or the store does not know."""

        def ask() -> float:
            with suppress(FileNotFoundError, NotImplementedError):
                return self._files.modified(self._full(rel))
            return otherwise

        return self._call(rel, READABLE, ask)

    def _try_read(self, rel: str) -> bytes | None:
        try:
            return self._files.read(self._full(rel))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _entries(self, folder: str) -> Iterator[Entry]:
        def entries() -> Iterator[Entry]:
            try:
                return iter(self._files.entries(self._full(folder)))
            except FileNotFoundError:
                return iter(())

        return self._call(folder, READABLE, entries)

    @contextmanager
    def _scratch(self, rel: str) -> Iterator[Path]:
        if not self.is_local:
            with scratch_folder() as folder:
                yield folder / Path(rel).name
            return
        target = Path(self._full(rel))
        private = target.with_name(private_name(target.name))
        self._call(rel, WRITABLE, lambda: private.parent.mkdir(parents=True, exist_ok=True))
        try:
            yield private
        finally:
            private.unlink(missing_ok=True)

    def _full(self, rel: str) -> str:
        return f"{self.path.rstrip('/')}/{rel}" if rel else str(self.path)

    def _call(self, rel: str, allowed: str, action: Callable[[], T]) -> T:
        """Call ``action``, repeat it while that may help, and report what remains as OutputError or StorageError."""
        start = time.monotonic()
        if not self.is_local and os.getpid() != self._pid:
            self._renew()  # a driver's threads do not go on in a forked process
        try:
            result = repeat(action, self.patience_s, lambda error: self._may_pass(error, rel, allowed))
        except driver_errors() as cause:
            raise self._error(cause, rel, allowed, start) from cause
        self._worked.add(allowed)
        return result

    def _error(self, cause: Exception, rel: str, allowed: str, start: float) -> OutputError:
        reason = one_line(cause)
        if not self._is_transient(cause, allowed):
            return OutputError(bad("out", self._place(rel), f"{allowed} ({reason})"))
        waited = f"{reason}; tried for {time.monotonic() - start:.0f} s"
        return StorageError(bad("out", self._place(rel), f"{allowed} at the moment ({waited})"))

    def _place(self, rel: str) -> str:
        return f"{self.root}/{rel}" if rel else self.root

    def _may_pass(self, error: BaseException, rel: str, allowed: str) -> bool:
        if not self._is_transient(error, allowed):
            return False
        log.warning("out: %r is not %s at the moment (%s); trying again", self._place(rel), allowed, one_line(error))
        if outlook(error, self.is_local) is Outlook.REFUSED:
            self._renew()
            self._fresh = True
        return True

    def _renew(self) -> None:
        """Use a new instance of the driver, which reads the credentials anew."""
        fs, _ = fsspec.core.url_to_fs(self._url, use_listings_cache=False, skip_instance_cache=True)
        self._files, self._pid = RemoteFiles(fs), os.getpid()

    def _is_transient(self, error: BaseException, allowed: str) -> bool:
        if not isinstance(error, driver_errors()):
            return False
        kind = outlook(error, self.is_local)
        # Credentials that worked before have expired; others never had the permission.
        return kind is Outlook.TRANSIENT or (kind is Outlook.REFUSED and (allowed in self._worked or not self._fresh))


def open_store(out: Store | str | Path) -> Store:
    """The store of a run's output: itself, or that of a path or URL."""
    return out if isinstance(out, Store) else Store(str(out))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
