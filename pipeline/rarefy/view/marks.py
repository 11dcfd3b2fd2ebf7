"""Dropping and keeping images: changes of the exclusion list that several people may make at the same time."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rarefy.consume.exclusions import read_exclusions, write_exclusions
from rarefy.errors import OutputError
from rarefy.shards.exclusions import place
from rarefy.shards.store import Store

PATIENCE_S = 2.0  # to find out whether the folder can be written


class Marks:
    """The exclusion list of the run in ``store``. data: the data set's folder, where the list is.

    place: of the list; why_not: why it cannot be changed, empty if it can. Every change reads the list, changes it and
    writes it whole. Processes on one machine take turns; on an object store the last of two simultaneous writers wins.
    """

    def __init__(self, store: Store, data: Store) -> None:
        self._store, self._data, self._lock = store, data, threading.Lock()
        self.why_not, self.place = _why_not(data), place(data)

    def change(self, keys: Collection[str], drop: bool) -> frozenset[str]:
        """Drop or keep images; returns the new list. Raises OutputError if it cannot be written, DataError."""
        if self.why_not:
            raise OutputError(self.why_not)
        with self._lock, _turn(self._data):
            before = read_exclusions(self._store)
            after = before.union(keys) if drop else before.difference(keys)
            if after != before:
                write_exclusions(self._store, after)
            return after


def _why_not(data: Store) -> str:
    try:
        Store(data.root, PATIENCE_S).check_writable()
    except OutputError as error:
        return f"images cannot be dropped here: {error}"
    return ""


@contextmanager
def _turn(data: Store) -> Iterator[None]:
    """Wait until no other process on this machine changes the list."""
    if not data.is_local:
        yield
        return
    folder = os.open(data.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
