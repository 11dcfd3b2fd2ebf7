"""Files of an object store or of another fsspec file system."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rarefy.shards.files import Entry, Source
from rarefy.shards.retry import driver_errors, http_status

S3, GCS, MEMORY = "s3", "gs", "memory"
TOKEN = "rarefy-token"  # user-defined metadata of objects
PRECONDITION_FAILED, NOT_IMPLEMENTED = 412, 501
_memory_lock = threading.Lock()  # fsspec's memory file system is shared by all stores of the process


class RemoteFiles:
    """Every file is uploaded in one piece; a reader sees the whole file or none.

    ``create`` is atomic on S3 (If-None-Match), Google Cloud Storage (generation match) and in memory. Elsewhere it
    looks first and writes then, so that two writers within the same moment can both believe to be the first. So can
    they on a server that speaks S3's protocol but ignores If-None-Match.
    ``withdraw`` is exact on S3 (If-Match) and in memory; elsewhere it compares first and deletes then.
    """

    def __init__(self, fs: Any) -> None:
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self.fs = fs
        self.kind = next((kind for kind in (S3, GCS, MEMORY) if kind in protocols), "")
        self.atomic = bool(self.kind)
        # s3fs asks for a large file's size first and then reads its parts at the same time; this is one request.
        self._one_read = {"max_concurrency": 1} if self.kind == S3 else {}
        if self.kind == S3:
            # Otherwise the driver and the library below it repeat calls as well, and their delays multiply.
            fs.retries = 1
            fs.config_kwargs.setdefault("retries", {"total_max_attempts": 1})

    def exists(self, path: str) -> bool:
        try:
            self.fs.info(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        return int(self.fs.size(path))

    def read(self, path: str) -> bytes:
        return bytes(self.fs.cat_file(path, **self._one_read))

    def download(self, path: str, target: Path) -> None:
        self.fs.get_file(path, str(target))

    def entries(self, folder: str) -> list[Entry]:
        full = folder.rstrip("/")
        # Object stores may list a placeholder for the folder itself.
        found = [entry for entry in self.fs.ls(full, detail=True) if entry["name"].rstrip("/") != full]
        return [Entry(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"] == "file") for entry in found]

    def put(self, path: str, source: Source) -> None:
        self._send(path, source)

    def create(self, path: str, data: bytes, token: str) -> bool:
        if self.kind == MEMORY:
            with _memory_lock:
                return self._look_and_send(path, data)
        if not self.atomic:
            return self._look_and_send(path, data)
        options: dict[str, Any] = {"Metadata": {TOKEN: token}} if self.kind == S3 else {}
        try:
            self._send(path, data, mode="create", **options)
        except driver_errors() as cause:
            if not (isinstance(cause, FileExistsError) or http_status(cause) == PRECONDITION_FAILED):
                raise
            return self.kind == S3 and self._has_token(path, token)
        return True

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(path)

    def withdraw(self, path: str, sha256: str) -> bool:
        if self.kind == MEMORY:
            with _memory_lock:
                return self._compare_and_delete(path, sha256)
        return self._compare_and_delete(path, sha256)

    def modified(self, path: str) -> float:
        time: datetime = self.fs.modified(path)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    def _send(self, path: str, source: Source, **options: Any) -> None:
        if isinstance(source, Path):
            self.fs.put_file(str(source), path, **options)
        else:
            self.fs.pipe_file(path, source, **options)

    def _has_token(self, path: str, token: str) -> bool:
        """Whether an object was written by the call with this token: libraries may repeat a request silently."""
        bucket, key, _ = self.fs.split_path(path)
        with suppress(FileNotFoundError):
            return bool(self.fs.call_s3("head_object", Bucket=bucket, Key=key)["Metadata"].get(TOKEN) == token)
        return False

    def _look_and_send(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        self._send(path, data)
        return True

    def _compare_and_delete(self, path: str, sha256: str) -> bool:
        try:
            tag = str(self.fs.info(path).get("ETag", ""))
            content = self.read(path)
        except FileNotFoundError:
            return True
        if hashlib.sha256(content).hexdigest() != sha256:
            return False
        if self.kind == S3:
            return self._delete_version(path, tag)
        self.delete(path)
        return True

    def _delete_version(self, path: str, tag: str) -> bool:
        """Delete an object of S3 unless it has been replaced since it had this entity tag."""
        bucket, key, _ = self.fs.split_path(path)
        try:
            self.fs.call_s3("delete_object", Bucket=bucket, Key=key, IfMatch=tag)
        except FileNotFoundError:
            return True
        except driver_errors() as cause:
            if http_status(cause) == NOT_IMPLEMENTED:  # an older server that speaks S3's protocol
                self.delete(path)
                return True
            if http_status(cause) != PRECONDITION_FAILED:
                raise
            return False
        return True
