"""The state of a run, also of another process's, read from its output alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from rarefy.audit.current import is_current
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.schema import METRICS_PATH, read_result
from rarefy.audit.verdict import judge
from rarefy.errors import OutputError, ShardError, bad, near_path
from rarefy.generate.driver_file import RUNNING, DriverFile, GivenUp, read_driver_files, still_missing
from rarefy.generate.progress import duration
from rarefy.plan import Plan, data_store, make_plan
from rarefy.shards.claim import MANIFEST_FILE
from rarefy.shards.index import is_sealed
from rarefy.shards.listing import committed_numbers
from rarefy.shards.store import Store

SHOWN = 10  # given-up shards and causes in the text; --json has all that the files keep
SILENT = "silent"  # a driver that has not written for a while; it may have been killed
NO_AUDIT, UNREADABLE = "none", "unreadable, run rarefy audit again"
OUT_OF_DATE = "out of date, run rarefy audit again"


@dataclass(frozen=True)
class DriverStatus:
    """One driver. state: running, silent, finished, interrupted or failed; age_s: since its last heartbeat."""

    driver: str
    host: str
    pid: int
    state: str
    age_s: float
    images_per_second: float
    actors_ready: int
    actors_wanted: int
    waiting: str
    retries: dict[str, int]
    causes: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class RunStatus:
    """A run as its output shows it. shards, images: committed; planned_*: of the whole run.

    images_per_second, eta_s: of the drivers that are live, None without any; retries: of all drivers, by whose fault it
    was; given_up: shards that no driver has committed since; audit: the audit's verdict, or "none"; selected: whether
    OUT/selected is sealed, None for a run without [select].
    """

    name: str
    out: str
    shards: int
    planned_shards: int
    images: int
    planned_images: int
    images_per_second: float | None
    eta_s: float | None
    drivers: tuple[DriverStatus, ...]
    retries: dict[str, int]
    given_up: tuple[GivenUp, ...]
    sealed: bool
    audit: str
    selected: bool | None = None

    def text(self) -> str:
        """The status in a few lines."""
        shown = self._shown_drivers()
        lines = [f"{self.name}: {self._progress()}", *map(_driver_line, shown)]
        if len(shown) < len(self.drivers):
            lines.append(f"and {len(self.drivers) - len(shown)} earlier drivers")
        if self.retries:
            lines.append("retries: " + ", ".join(f"{count} ({blame})" for blame, count in sorted(self.retries.items())))
        lines += [f"  {cause}" for driver in shown for cause in driver.causes][-SHOWN:]
        lines += [_given_up_line(row) for row in self.given_up[:SHOWN]]
        if len(self.given_up) > SHOWN:
            lines.append(f"and {len(self.given_up) - SHOWN} more shards are given up, which logs/failures.json lists")
        selected = "" if self.selected is None else f"selected: {'yes' if self.selected else 'no'}, "
        lines.append(f"sealed: {'yes' if self.sealed else 'no'}, {selected}audit: {self.audit}")
        return "\n".join(lines)

    def _shown_drivers(self) -> list[DriverStatus]:
        """Those that run, and the last to have started."""
        return [driver for driver in self.drivers if driver.state == RUNNING or driver is self.drivers[-1]]

    def _progress(self) -> str:
        share = self.images / self.planned_images
        text = f"{self.images:,} of {self.planned_images:,} images ({share:.1%})"
        text += f", {self.shards:,} of {self.planned_shards:,} shards"
        if self.images_per_second is None:
            return text if self.shards == self.planned_shards else f"{text}, no live driver"
        eta = "--" if self.eta_s is None else duration(self.eta_s)
        return f"{text}, {self.images_per_second:.2f} images/s, ETA {eta}"


def read_status(store: Store, now: float | None = None) -> RunStatus:
    """The status of the run in ``store``. now: seconds since 1970. Raises OutputError if there is no run.

    It takes one listing of all markers and reads none of them; ``rarefy verify`` checks what is in the files.
    """
    now = time.time() if now is None else now
    if not store.exists(MANIFEST_FILE):
        raise OutputError(bad("out", store.root, f"a rarefy run: it has no manifest.toml{near_path(store.root)}"))
    manifest = read_manifest(store)
    plan, files = make_plan(manifest), read_driver_files(store)
    numbers = {number for number in committed_numbers(store, manifest.prefix) if number < plan.num_shards}
    images = _images(plan, numbers)
    rates = [_rate(file) for file in files if file.live(now)]
    rate = sum(rates) if rates else None
    return RunStatus(
        name=manifest.name,
        out=store.root,
        shards=len(numbers),
        planned_shards=plan.num_shards,
        images=images,
        planned_images=plan.total,
        images_per_second=rate,
        eta_s=(plan.total - images) / rate if rate else None,
        drivers=tuple(_driver(file, now) for file in files),
        retries=dict(sum((Counter(file.retries) for file in files), Counter[str]())),
        given_up=tuple(still_missing(files, numbers)),
        sealed=is_sealed(store),
        audit=_audit(store),
        selected=None if manifest.select is None else is_sealed(data_store(store, manifest)),
    )


def _images(plan: Plan, numbers: set[int]) -> int:
    """Images in these shards. All are full except the last."""
    lacking = plan.num_shards * plan.shard_size - plan.total
    return len(numbers) * plan.shard_size - (lacking if plan.num_shards - 1 in numbers else 0)


def _rate(file: DriverFile) -> float:
    return float((file.status or {}).get("images_per_second") or 0.0)


def _driver(file: DriverFile, now: float) -> DriverStatus:
    status = file.status or {}
    return DriverStatus(
        driver=file.driver,
        host=file.host,
        pid=file.pid,
        state=SILENT if file.state == RUNNING and not file.live(now) else file.state,
        age_s=file.age_s(now),
        images_per_second=_rate(file),
        actors_ready=int(status.get("actors_alive") or 0),
        actors_wanted=int(status.get("actors_wanted") or 0),
        waiting=file.waiting,
        retries=dict(file.retries),
        causes=file.causes,
        error=file.error,
    )


def _audit(store: Store) -> str:
    """The audit's verdict, in the words of its page."""
    if not store.exists(METRICS_PATH):
        return NO_AUDIT
    try:
        result = read_result(store)
        return judge(result).headline if is_current(store, result) else OUT_OF_DATE
    except ShardError:
        return UNREADABLE


def _driver_line(driver: DriverStatus) -> str:
    text = f"driver on {driver.host} (pid {driver.pid}): {driver.state}, heartbeat {duration(driver.age_s)} ago"
    if driver.state == RUNNING:
        text += f", actors {driver.actors_ready}/{driver.actors_wanted}"
    if driver.waiting and driver.state == RUNNING:
        text += f", waiting: {driver.waiting}"
    return f"{text}: {driver.error}" if driver.error else text


def _given_up_line(row: GivenUp) -> str:
    return f"given up: {row.shard} after {row.attempts} attempts: {row.error}"
