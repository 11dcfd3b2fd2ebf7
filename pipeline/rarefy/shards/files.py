"""What a store needs of a file system."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import NamedTuple, Protocol

# The content of a file to be written: itself, or a local file that has it.
Source = bytes | Path
PRIVATE_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class Entry(NamedTuple):
    """One name in a folder."""

    name: str
    is_file: bool


class Files(Protocol):
    """Calls that are tried once and raise whatever the file system or its driver raises.

    atomic: of any number of simultaneous ``create`` calls for one path, exactly one returns True.
    """

    atomic: bool

    def exists(self, path: str) -> bool: ...

    def size(self, path: str) -> int: ...

    def read(self, path: str) -> bytes: ...

    def download(self, path: str, target: Path) -> None: ...

    def entries(self, folder: str) -> list[Entry]: ...

    def put(self, path: str, source: Source) -> None:
        """Write the file, replacing an earlier one."""

    def create(self, path: str, data: bytes, token: str) -> bool:
        """Write the file unless there is one of that name; returns whether it was written.

        token: the same when a call is repeated, unique otherwise. It tells a file that an earlier try has written.
        """
        ...

    def delete(self, path: str) -> None:
        """Delete the file if it exists."""

    def withdraw(self, path: str, sha256: str) -> bool:
        """Delete the file if it has this content; returns whether there is no file of that name any more."""
        ...

    def modified(self, path: str) -> float:
        """Time of the last change in seconds since 1970, by the file system's clock."""
        ...


def private_name(name: str) -> str:
    """A name that no other writer uses and that readers ignore."""
    return f".{name}.{uuid.uuid4().hex}.tmp"
