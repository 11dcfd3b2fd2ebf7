"""Files of a local or mounted file system."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rarefy.shards.files import Entry, Source, private_name

# What link() says where the file system has no hard links (FAT, some network and FUSE mounts).
NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})


class LocalFiles:
    """Every file is written under a private name in its folder and synced before it gets its name.

    link() gives it a name that must be new, rename() one that may be in use. Where there are no hard links, a new name
    is opened exclusively: still only one of two writers gets it, but a reader can see a part of the file, and after a
    crash a part may be left.
    """

    atomic = True

    def exists(self, path: str) -> bool:
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def size(self, path: str) -> int:
        return Path(path).stat().st_size

    def read(self, path: str) -> bytes:
        with open_file(path) as stream:
            return stream.read()

    def download(self, path: str, target: Path) -> None:
        shutil.copyfile(path, target)

    def entries(self, folder: str) -> list[Entry]:
        with os.scandir(folder) as found:
            return [Entry(entry.name, entry.is_file()) for entry in found]

    def put(self, path: str, source: Source) -> None:
        with self._written(Path(path), source) as private:
            private.replace(path)

    def create(self, path: str, data: bytes, token: str) -> bool:
        """An empty directory of that name is removed first: nothing is lost with it."""
        target = Path(path)
        if target.is_dir():
            target.rmdir()
        with self._written(target, data) as private:
            try:
                os.link(private, target)
            except FileExistsError:
                # After a lost answer, network file systems repeat a link that they have already made.
                return target.exists() and target.samefile(private)
            except OSError as cause:
                if cause.errno not in NO_LINKS:
                    raise
                return _create_without_links(private, target)
        return True

    def delete(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)

    def withdraw(self, path: str, sha256: str) -> bool:
        """Take the file away, look at it, and put it back if another writer has replaced it since the first look."""
        target = Path(path)
        if not target.exists():
            return True
        if _sha256(target) != sha256:
            return False
        private = target.with_name(private_name(target.name))
        try:
            with suppress(PermissionError):  # another user's file
                os.utime(target)  # otherwise a sweep could take the private file for a dead attempt's
            target.rename(private)
            if _sha256(private) == sha256:
                return True
            _put_back(private, target)
            return False
        except FileNotFoundError:
            return True
        finally:
            private.unlink(missing_ok=True)
            sync(target.parent)

    def modified(self, path: str) -> float:
        return Path(path).stat().st_mtime

    @contextmanager
    def _written(self, target: Path, source: Source) -> Iterator[Path]:
        target.parent.mkdir(parents=True, exist_ok=True)
        private = target.with_name(private_name(target.name))
        try:
            if isinstance(source, Path):
                shutil.copyfile(source, private)
            else:
                private.write_bytes(source)
            try:
                sync(private)
                yield private
            except FileNotFoundError as cause:
                # Another driver's sweep took it for a dead attempt's, because a clock has jumped.
                raise OSError(errno.ESTALE, "the private file was deleted") from cause
            sync(target.parent)
        finally:
            private.unlink(missing_ok=True)


def _create_without_links(private: Path, target: Path) -> bool:
    try:
        stream = target.open("xb")
    except FileExistsError:
        return False
    try:
        with stream, private.open("rb") as source:
            shutil.copyfileobj(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        target.unlink()
        raise
    return True


def _put_back(private: Path, target: Path) -> None:
    try:
        os.link(private, target)
    except FileExistsError:
        pass  # yet another writer was quicker
    except OSError as cause:
        if cause.errno not in NO_LINKS:
            raise
        private.rename(target)


def open_file(path: str | Path) -> BinaryIO:
    """Open a file for reading. Anything else of that name is an OSError: opening a pipe waits for its other end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a pipe or a device")
        return open(descriptor, "rb")  # noqa: PTH123 - not a path; a directory is an IsADirectoryError
    except BaseException:
        os.close(descriptor)
        raise


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
