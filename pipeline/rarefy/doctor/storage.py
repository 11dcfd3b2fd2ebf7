"""The storage of a run: whether it does what a run needs, how fast, and whether its clock is this machine's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rarefy.doctor.check import Check, ok, problem, warning
from rarefy.errors import RarefyError
from rarefy.shards.files import private_name
from rarefy.shards.store import Store

T = TypeVar("T")
PATIENCE_S = 10.0
SLOW_S = 2.0  # for one small file
SKEW_S = 60.0
CONTENT = uuid.uuid4().bytes * 256  # 4 kB


def check_storage(out: str) -> Iterator[Check]:
    """Write, create, read, list and delete a private file in ``out``; folders that were not there are removed again."""
    try:
        store = Store(out, PATIENCE_S)
        place = Path(store.path)
        new = [folder for folder in (place, *place.parents) if store.is_local and not folder.exists()]
        yield from _probe(store)
    except RarefyError as error:
        yield problem("storage", str(error), "check the URL, the credentials and the network")
        return
    for folder in new:
        with suppress(OSError):
            folder.rmdir()


def _probe(store: Store) -> Iterator[Check]:
    name = private_name("doctor")
    times: dict[str, float] = {}
    try:
        first = _timed(times, "create", lambda: store.create(name, CONTENT))
        second = _timed(times, "create again", lambda: store.create(name, b"another writer's"))
        _timed(times, "write", lambda: store.write_bytes(name, CONTENT))
        read = _timed(times, "read", lambda: store.read_bytes(name))
        listed = _timed(times, "list", lambda: name in set(store.files("")))
        skew = store.seconds_ahead(name)
    finally:
        _timed(times, "delete", lambda: store.delete(name))
    left = store.exists(name)
    yield from _results(store, (first, not second, read == CONTENT, listed, not left), times)
    if abs(skew) > SKEW_S:
        text = f"this machine's clock differs by {abs(skew):.0f} s from the storage's"
        yield warning("clock", text, "set it (NTP): another machine may take a living driver for dead")


def _results(store: Store, worked: tuple[bool, ...], times: dict[str, float]) -> Iterator[Check]:
    first, refused, read, listed, deleted = worked
    if not (first and read and listed and deleted):
        names = [("create", first), ("read", read), ("list", listed), ("delete", deleted)]
        failed = ", ".join(name for name, fine in names if not fine)
        yield problem("storage", f"{store.root}: {failed} did not do what it said", "use another storage")
        return
    shown = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in times.items())
    if not (refused and store.creates_atomically):
        advice = "start only one driver at a time for an output there"
        yield warning("storage", f"{store.root}: two writers can both create a file ({shown})", advice)
    elif max(times.values()) > SLOW_S:
        yield warning("storage", f"{store.root}: slow ({shown})", "use storage near this machine")
    else:
        yield ok("storage", f"{store.root}: {shown}")


def _timed(times: dict[str, float], name: str, action: Callable[[], T]) -> T:
    start = time.monotonic()
    try:
        return action()
    finally:
        times[name] = time.monotonic() - start
