"""What a driver says about itself in ``state/drivers/<id>.json``, so that others can watch the run from its output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rarefy.errors import OutputError
from rarefy.shards.store import Store

FOLDER = "state/drivers"
BEAT_S = 30.0  # between two versions of the file
SILENT_BEATS = 4  # a driver that has missed so many is not live
FORMAT = 1
LARGEST = 1e15
THREADS = 8  # for object stores, where most time is spent waiting
RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"


@dataclass(frozen=True)
class GivenUp:
    """A shard without further attempts in a driver's session. class_id, seed: None if the error names none."""

    shard: str
    attempts: int
    blame: str | None
    class_id: int | None
    seed: int | None
    error: str


@dataclass(frozen=True)
class DriverFile:
    """A driver at one moment. Times are seconds since 1970 by the driver's own clock.

    status: as :class:`rarefy.generate.progress.Status`, None before the first actor; actors: machine by actor;
    retries: number by whose fault it was; causes: the last few; waiting: what a pending actor waits for; error: of a
    run that has failed.
    """

    driver: str
    host: str
    pid: int
    started_at: float
    written_at: float
    state: str = RUNNING
    version: int = FORMAT
    status: Mapping[str, Any] | None = None
    actors: Mapping[str, str] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    causes: tuple[str, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    waiting: str = ""
    error: str = ""

    def age_s(self, now: float) -> float:
        """Seconds since the last heartbeat."""
        return max(0.0, now - self.written_at)

    def live(self, now: float) -> bool:
        """Whether the driver still runs, as far as its heartbeat tells."""
        return self.state == RUNNING and self.age_s(now) < SILENT_BEATS * BEAT_S

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode() + b"\n"


def driver_path(driver: str) -> str:
    return f"{FOLDER}/{driver}.json"


def parse_driver_file(data: bytes) -> DriverFile | None:
    """A driver's file; None if it is damaged or another version wrote it."""
    try:
        table = json.loads(data)
        given_up = tuple(GivenUp(**row) for row in table.pop("given_up"))
        parsed = DriverFile(**{**table, "causes": tuple(table["causes"])}, given_up=given_up)
        return parsed if _is_valid(parsed) else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def read_driver_files(store: Store) -> list[DriverFile]:
    """All drivers' files that can be read, the longest running first."""
    paths = [f"{FOLDER}/{name}" for name in store.list(FOLDER) if name.endswith(".json")]
    with ThreadPoolExecutor(THREADS) as pool:
        files = list(pool.map(lambda path: _read(store, path), paths))
    return sorted((file for file in files if file is not None), key=lambda file: file.started_at)


def _read(store: Store, rel: str) -> DriverFile | None:
    try:
        return parse_driver_file(store.read_bytes(rel))
    except OutputError:
        return None  # it is being replaced


def still_missing(files: Iterable[DriverFile], committed: Collection[int]) -> list[GivenUp]:
    """Shards that some driver has given up and none has committed since, in order."""
    rows = {row.shard: row for file in files for row in file.given_up}
    return [row for name, row in sorted(rows.items()) if int(name.rpartition("-")[2]) not in committed]


def _is_valid(file: DriverFile) -> bool:
    """Whether all values have the types and ranges that readers rely on. Raises what wrong types raise."""
    status: Mapping[str, Any] = {} if file.status is None else file.status
    numbers = [file.written_at, file.started_at, file.pid, *file.retries.values()]
    numbers += [status.get(name) or 0 for name in ("images_per_second", "actors_alive", "actors_wanted")]
    numbers += [int(row.shard.rpartition("-")[2]) for row in file.given_up]
    texts = [file.driver, file.host, file.state, file.waiting, file.error, *file.causes, *file.retries]
    texts += [row.error for row in file.given_up]
    return (
        file.version == FORMAT
        and all(isinstance(text, str) for text in texts)
        and all(0 <= number < LARGEST and not isinstance(number, bool) for number in numbers)
    )
